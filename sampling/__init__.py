"""Sampling: latents, conditions, restored generators, projection, directions, pictures, the demo data set."""
