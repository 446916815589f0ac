"""The variety of images: the multi-scale structural similarity (MS-SSIM) of random pairs."""

import numpy as np

from graph.session import open_session, tf
from metrics.swd import chunks

SCALE_WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])  # published weights, finest scale first
WINDOW_SIDE = 11  # side of the published window, pixels


def ms_ssim(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The MS-SSIM of each pair of images, uint8 (N, H, W, C): float32 (N,) from 0 to 1 (equal). Wang et al. (2003)."""
    # Leave out scales that are smaller than the window: for 28x28, two of the five remain.
    weights = SCALE_WEIGHTS[[min(left.shape[1:3]) >> scale >= WINDOW_SIDE for scale in range(len(SCALE_WEIGHTS))]]
    with tf.Graph().as_default(), open_session() as session:
        x, y = (tf.placeholder(tf.uint8, [None, *left.shape[1:]]) for _ in range(2))
        similarity = tf.image.ssim_multiscale(x, y, 255, weights / weights.sum(), filter_size=WINDOW_SIDE)
        values = [session.run(similarity, {x: left[chunk], y: right[chunk]}) for chunk in chunks(*left.shape[:3])]
    return np.concatenate(values)


def mean_ms_ssim(images: np.ndarray, seed: int = 0) -> float:
    """The mean MS-SSIM of random pairs of images (at least 2): lower means more varied (Odena et al., 2017)."""
    # Each image is in two pairs.
    order = np.random.default_rng(seed).permutation(len(images))
    return float(ms_ssim(images[order], images[np.roll(order, 1)]).mean())
