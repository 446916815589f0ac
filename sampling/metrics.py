"""Measures of generated images: how good and how varied they are, and whether they are copies.

Images are uint8 (N, H, W, 3), square.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from graph.session import open_session, tf

# The sliced Wasserstein distance, as Karras et al. published it.
BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16  # filter of the pyramid
MIN_SIDE = 14  # of a pyramid level, pixels; they have 16, which ends the pyramids of 2^n pixels at the same level
PATCH_SIDE = 7
PATCHES = 128  # per image and level
DIRECTIONS = 512  # theirs: 4 times 128
DIRECTIONS_AT_ONCE = 64
MIN_STDDEV = 1e-6  # avoids a division by zero where all pixels are the same
# MS-SSIM, as Wang et al. published it.
SCALE_WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])  # the finest scale first
WINDOW_SIDE = 11

PIXELS_AT_ONCE = 1 << 20


def subset(indices: np.ndarray, max_count: int) -> np.ndarray:
    """At most `max_count` of `indices`, in order: a random choice, but always the same."""
    return np.sort(np.random.default_rng(0).permutation(indices)[:max_count])


def chunks(count: int, side: int) -> Iterator[slice]:
    """Yield slices that divide `count` images of `side` x `side` into chunks of at most PIXELS_AT_ONCE pixels."""
    size = max(1, PIXELS_AT_ONCE // side**2)
    for start in range(0, count, size):
        yield slice(start, start + size)


# --- quality: the sliced Wasserstein distance


def blurred(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """`images` filtered with `kernel` (5,) along rows and columns, reflected at the borders."""
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = (2, 2)
        windows = sliding_window_view(np.pad(images, padding, mode='reflect'), len(kernel), axis)
        images = sum(weight * windows[..., offset] for offset, weight in enumerate(kernel))
    return images


def downsampled(images: np.ndarray) -> np.ndarray:
    """`images` blurred, at half their height and width."""
    return blurred(images, BINOMIAL)[:, ::2, ::2]


def upsampled(images: np.ndarray) -> np.ndarray:
    """`images` interpolated, at twice their height and width."""
    count, height, width, channels = images.shape
    spread = np.zeros((count, 2 * height, 2 * width, channels), images.dtype)
    spread[:, ::2, ::2] = images
    return blurred(spread, 2 * BINOMIAL)  # times 4 in both directions together: three of four pixels are zero


def gaussian_pyramid(images: np.ndarray) -> list[np.ndarray]:
    """`images` at full size, at half, at a quarter, ... down to no less than MIN_SIDE; float32."""
    levels = [images.astype(np.float32)]
    while levels[-1].shape[1] >= 2 * MIN_SIDE:
        levels.append(downsampled(levels[-1]))
    return levels


def laplacian_pyramid(images: np.ndarray) -> list[np.ndarray]:
    """The detail that each level of the Gaussian pyramid adds to the next, and the last level itself.

    The finest comes first: for 28x28 the sides are 28 and 14. float32 (N, side, side, 3). Burt and Adelson, 1983.
    """
    levels = gaussian_pyramid(images)
    return [fine - upsampled(coarse) for fine, coarse in itertools.pairwise(levels)] + levels[-1:]


def descriptors(images: np.ndarray, level: int, corners: np.ndarray) -> np.ndarray:
    """Patches from one level of the Laplacian pyramid, each channel normalised to mean 0 and standard deviation 1.

    corners: (N, n, 2), row and column of the top left pixel of n patches in each image.
    Returns float32 (N * n, 3 * PATCH_SIDE**2).
    """
    patches = np.empty((*corners.shape[:2], 3, PATCH_SIDE, PATCH_SIDE), np.float32)
    for chunk in chunks(*images.shape[:2]):
        windows = sliding_window_view(laplacian_pyramid(images[chunk])[level], (PATCH_SIDE, PATCH_SIDE), (1, 2))
        rows, columns = np.moveaxis(corners[chunk], -1, 0)
        patches[chunk] = windows[np.arange(len(windows))[:, None], rows, columns]
    for channel in range(3):
        values = patches[:, :, channel]
        values -= values.mean(dtype=np.float64).astype(np.float32)
        values /= max(MIN_STDDEV, np.sqrt(np.mean(values * values, dtype=np.float64)))
    return patches.reshape(-1, 3 * PATCH_SIDE**2)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> float:
    """The mean Wasserstein distance of two equally large sets of vectors (n, d), projected onto random directions.

    In one dimension it is the mean difference of the sorted values (Rabin et al., 2011).
    """
    directions = rng.standard_normal((DIRECTIONS, a.shape[1]))
    directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    means = []
    for start in range(0, DIRECTIONS, DIRECTIONS_AT_ONCE):
        left, right = (directions[start : start + DIRECTIONS_AT_ONCE] @ vectors.T for vectors in (a, b))
        left.sort(axis=1)
        right.sort(axis=1)
        means.append(np.abs(left - right).mean(dtype=np.float64))
    return float(np.mean(means))


def swd(generated: np.ndarray, real: np.ndarray, seed: int = 0) -> dict[int, float]:
    """The sliced Wasserstein distance times 1000 of two sets of images, by side of the Laplacian pyramid's levels.

    For images of 28x28 the keys are 28, where fine detail is compared, and 14, where the overall picture is. Lower is
    better, and 0 means that the sets are equal. The larger set is cut to the size of the smaller; distances depend on
    that size, so compare only those of equally many images.

    Karras et al., 2018 (arXiv:1710.10196), with two differences: the smallest level may have 14 pixels instead of 16,
    and patches are taken from the same places in both sets, so that the places do not add to the distance.
    """
    count, side = min(len(generated), len(real)), generated.shape[1]
    rng = np.random.default_rng(seed)
    distances: dict[int, float] = {}
    while side >= MIN_SIDE:
        corners = rng.integers(0, side - PATCH_SIDE + 1, (count, PATCHES, 2))
        a, b = (descriptors(images[:count], len(distances), corners) for images in (generated, real))
        distances[side] = 1000 * sliced_wasserstein(a, b, rng)
        side //= 2
    return distances


# --- variety: the multi-scale structural similarity


def ms_ssim(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The multi-scale structural similarity of each pair of images, float32 (N,): from 0 to 1, which means equal.

    Wang et al., 2003, on those of the five scales that are at least as large as the window, which are two for 28x28,
    with their weights divided by the sum. The mean of the three channels.
    """
    scales = sum(left.shape[1] >> scale >= WINDOW_SIDE for scale in range(len(SCALE_WEIGHTS)))
    weights = SCALE_WEIGHTS[:scales] / SCALE_WEIGHTS[:scales].sum()
    with tf.Graph().as_default(), open_session() as session:
        x, y = (tf.placeholder(tf.uint8, [None, *left.shape[1:]]) for _ in range(2))
        similarity = tf.image.ssim_multiscale(x, y, max_val=255, power_factors=weights, filter_size=WINDOW_SIDE)
        return np.concatenate(
            [session.run(similarity, {x: left[chunk], y: right[chunk]}) for chunk in chunks(*left.shape[:2])]
        )


def mean_ms_ssim(images: np.ndarray, seed: int = 0) -> float:
    """The mean MS-SSIM of random pairs of images: lower means more varied (Odena et al., 2017).

    Takes at least two images. Each is part of two pairs.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    return float(ms_ssim(images[order], images[np.roll(order, 1)]).mean())


# --- copies: nearest neighbours


def coarse_vectors(images: np.ndarray) -> np.ndarray:
    """The last level of the Gaussian pyramid of each image, 14x14 or 16x16, as a vector: float32 (N, d)."""
    levels = [gaussian_pyramid(images[chunk])[-1] for chunk in chunks(*images.shape[:2])]
    return np.concatenate(levels).reshape(len(images), -1)


def nearest(images: np.ndarray, faces: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest face to each of `images`: its index in `faces`, (N,), and its distance, (N,).

    faces: uint8 (M, H, W, 3), which may be memory-mapped. candidates: the indices of the faces to choose from.
    The distance is the root mean square difference, on a scale of 0..255, of images blurred and reduced to 14 or 16
    pixels: fine detail, which is never copied exactly, does not count.
    """
    vectors = coarse_vectors(images)
    indices, min_scores = np.zeros(len(images), int), np.full(len(images), np.inf)
    for chunk in chunks(len(candidates), images.shape[1]):
        others = coarse_vectors(faces[candidates[chunk]])
        # |x - y|^2 = |x|^2 + |y|^2 - 2xy, where |x|^2 is the same for all y.
        scores = np.square(others).sum(axis=1) - 2 * vectors @ others.T
        best = scores.argmin(axis=1)
        score = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
        closer = score < min_scores
        indices[closer], min_scores[closer] = candidates[chunk][best[closer]], score[closer]
    # Scores have rounding errors. The distance itself is computed exactly, so that of a copy is 0.
    return indices, np.sqrt(np.square(vectors - coarse_vectors(faces[indices])).mean(axis=1))
