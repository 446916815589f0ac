"""Faces from a trained generator: latents, drawing, the demo data set, pictures of faces, metrics."""
