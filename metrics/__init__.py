"""Measures of generated faces: sliced Wasserstein distance, feature distance, MS-SSIM, copies."""
