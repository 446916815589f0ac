"""The directory of a training run: its settings, `run.json`, checkpoints."""
