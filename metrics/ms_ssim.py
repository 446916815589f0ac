"""How varied images are: the multi-scale structural similarity of random pairs."""

import numpy as np

from graph.session import open_session, tf
from metrics.swd import chunks

SCALE_WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])  # of MS-SSIM, as published, the finest first
WINDOW_SIDE = 11  # of MS-SSIM


def ms_ssim(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The multi-scale structural similarity of each pair of images, float32 (N,): from 0 to 1, which means equal.

    Wang et al., 2003, on those of the five scales that are at least as large as the window, which are two for 28x28,
    with their weights divided by the sum. The mean of the channels.
    """
    weights = SCALE_WEIGHTS[[min(left.shape[1:3]) >> scale >= WINDOW_SIDE for scale in range(len(SCALE_WEIGHTS))]]
    with tf.Graph().as_default(), open_session() as session:
        x, y = (tf.placeholder(tf.uint8, [None, *left.shape[1:]]) for _ in range(2))
        similarity = tf.image.ssim_multiscale(x, y, 255, weights / weights.sum(), filter_size=WINDOW_SIDE)
        values = [session.run(similarity, {x: left[chunk], y: right[chunk]}) for chunk in chunks(*left.shape[:3])]
    return np.concatenate(values)


def mean_ms_ssim(images: np.ndarray, seed: int = 0) -> float:
    """The mean MS-SSIM of random pairs of images (at least 2): lower means more varied (Odena et al., 2017)."""
    order = np.random.default_rng(seed).permutation(len(images))  # each image is in two pairs
    return float(ms_ssim(images[order], images[np.roll(order, 1)]).mean())
