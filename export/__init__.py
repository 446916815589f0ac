"""A trained generator in formats of other programs."""
