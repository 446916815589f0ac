"""The directory of a training run: run.json, checkpoints, weights of another run."""
