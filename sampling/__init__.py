"""Drawing faces: latents, conditions, restored generators, projection, directions, the demo data set."""
