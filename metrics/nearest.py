"""The nearest training face to each generated one, to find copies."""

import numpy as np

from metrics.swd import chunks, gaussian_pyramid


def coarse_vectors(images: np.ndarray) -> np.ndarray:
    """The last level of the Gaussian pyramid of each image, 14x14 or 16x16, as a vector: float32 (N, d)."""
    levels = [gaussian_pyramid(images[chunk])[-1] for chunk in chunks(*images.shape[:3])]
    return np.concatenate(levels).reshape(len(images), -1)


def nearest(images: np.ndarray, faces: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest face to each of `images`: its index in `faces`, (N,), and its distance, (N,).

    faces: uint8 (M, H, W, C), which may be memory-mapped. candidates: indices of the faces to choose from.
    The distance is the root mean square difference, on a scale of 0..255, of blurred images of 14 or 16 pixels.
    """
    # Compare coarse images, because fine detail is never copied exactly.
    vectors = coarse_vectors(images)
    indices, min_scores = np.zeros(len(images), int), np.full(len(images), np.inf)
    # Find the nearest candidates, chunk by chunk.
    for chunk in chunks(len(candidates), *images.shape[1:3]):
        others = coarse_vectors(faces[candidates[chunk]])
        # |x - y|^2 = |x|^2 + |y|^2 - 2xy, where |x|^2 is the same for all y.
        scores = np.square(others).sum(axis=1) - 2 * vectors @ others.T
        closer = scores.min(axis=1) < min_scores
        indices[closer] = candidates[chunk][scores[closer].argmin(axis=1)]
        min_scores = np.minimum(min_scores, scores.min(axis=1))
    # The scores have rounding errors. Recompute the distances exactly, so that a copy has distance 0.
    return indices, np.sqrt(np.square(vectors - coarse_vectors(faces[indices])).mean(axis=1))
