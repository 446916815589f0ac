"""Metrics of generated faces: sliced Wasserstein distance, feature distances, MS-SSIM, nearest training faces."""
