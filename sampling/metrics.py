"""Measures of images, uint8 (N, H, W, C): how good and how varied they are, and whether they are copies."""

import itertools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from graph.session import open_session, tf

# The sliced Wasserstein distance, as Karras et al. published it.
BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16  # filter of the pyramid
MIN_SIDE = 14  # of a pyramid level, pixels; they have 16, which ends the pyramids of 2^n pixels at the same level
PATCH_SIDE, PATCHES = 7, 128  # pixels; per image and level
DIRECTIONS, DIRECTIONS_AT_ONCE = 512, 64  # theirs: 4 times 128
SCALE_WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])  # of MS-SSIM, as published, the finest first
WINDOW_SIDE = 11  # of MS-SSIM
PIXELS_AT_ONCE = 1 << 20


def subset(indices: np.ndarray, max_count: int) -> np.ndarray:
    """At most `max_count` of `indices`, in order: a random choice, but always the same."""
    return np.sort(np.random.default_rng(0).permutation(indices)[:max_count])


def chunks(count: int, height: int, width: int) -> list[slice]:
    """Slices that divide `count` images into chunks of at most PIXELS_AT_ONCE pixels."""
    size = max(1, PIXELS_AT_ONCE // (height * width))
    return [slice(start, start + size) for start in range(0, count, size)]


def blurred(images: np.ndarray) -> np.ndarray:
    """`images` filtered with BINOMIAL along rows and columns, reflected at the borders."""
    images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode='reflect')
    for axis in (1, 2):
        windows = sliding_window_view(images, len(BINOMIAL), axis)
        images = sum(weight * windows[..., offset] for offset, weight in enumerate(BINOMIAL))
    return images


def upsampled(images: np.ndarray) -> np.ndarray:
    """`images` interpolated, at twice their height and width."""
    spread = np.zeros(images.shape * np.array([1, 2, 2, 1]), images.dtype)
    spread[:, ::2, ::2] = 4 * images  # three of four pixels are zero
    return blurred(spread)


def gaussian_pyramid(images: np.ndarray) -> list[np.ndarray]:
    """`images` at full size, at half, at a quarter, ... down to no less than MIN_SIDE, or to odd sides; float32."""
    levels = [images.astype(np.float32)]
    while min(sides := levels[-1].shape[1:3]) >= 2 * MIN_SIDE and not any(side % 2 for side in sides):
        levels.append(blurred(levels[-1])[:, ::2, ::2])
    return levels


def laplacian_pyramid(images: np.ndarray) -> list[np.ndarray]:
    """The detail that each level of the Gaussian pyramid adds to the next, and the last level itself.

    The finest comes first: for 28x28 the sides are 28 and 14. float32 (N, H, W, C). Burt and Adelson, 1983.
    """
    levels = gaussian_pyramid(images)
    return [fine - upsampled(coarse) for fine, coarse in itertools.pairwise(levels)] + levels[-1:]


def descriptors(images: np.ndarray, level: int, corners: np.ndarray) -> np.ndarray:
    """Patches of one level of the Laplacian pyramid, each channel normalised: float32 (N * n, C * PATCH_SIDE**2).

    corners: (N, n, 2), row and column of the top left pixel of n patches in each image.
    """
    patches = np.empty((*corners.shape[:2], images.shape[-1], PATCH_SIDE, PATCH_SIDE), np.float32)
    for chunk in chunks(*images.shape[:3]):
        windows = sliding_window_view(laplacian_pyramid(images[chunk])[level], (PATCH_SIDE, PATCH_SIDE), (1, 2))
        rows, columns = np.moveaxis(corners[chunk], -1, 0)
        patches[chunk] = windows[np.arange(len(windows))[:, None], rows, columns]
    for values in np.moveaxis(patches, 2, 0):  # to mean 0 and standard deviation 1
        values -= values.mean(dtype=np.float64).astype(np.float32)
        values /= max(1e-6, np.sqrt(np.mean(values * values, dtype=np.float64)))  # all pixels may be the same
    return patches.reshape(corners.shape[0] * corners.shape[1], -1)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> float:
    """The mean Wasserstein distance of two equally large sets of vectors (n, d), projected onto random directions."""
    directions = rng.standard_normal((DIRECTIONS, a.shape[1]))
    directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    means = []
    for some in np.split(directions, DIRECTIONS // DIRECTIONS_AT_ONCE):
        left, right = (np.sort(some @ vectors.T, axis=1) for vectors in (a, b))
        means.append(np.abs(left - right).mean(dtype=np.float64))  # the distance in one dimension (Rabin et al., 2011)
    return float(np.mean(means))


def swd(generated: np.ndarray, real: np.ndarray, seed: int = 0) -> dict[str, float]:
    """The sliced Wasserstein distance times 1000 of two sets of images, by the size of the Laplacian pyramid's levels.

    For 28x28 the keys are 28x28, where fine detail is compared, and 14x14, where the overall picture is. Lower is
    better, 0 is equal. The larger set is cut to the size of the smaller: compare only distances between equally many
    images. Karras et al., 2018 (arXiv:1710.10196), with two differences: the smallest level may have 14 pixels instead
    of 16, and patches are taken from the same places in both sets, so that the places do not add to the distance.
    """
    count, rng = min(len(generated), len(real)), np.random.default_rng(seed)
    distances: dict[str, float] = {}
    for level, (_, height, width, _) in enumerate(each.shape for each in gaussian_pyramid(generated[:1])):
        corners = rng.integers(0, [height - PATCH_SIDE + 1, width - PATCH_SIDE + 1], (count, PATCHES, 2))
        a, b = (descriptors(images[:count], level, corners) for images in (generated, real))
        distances[f'{height}x{width}'] = 1000 * sliced_wasserstein(a, b, rng)
    return distances


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


def coarse_vectors(images: np.ndarray) -> np.ndarray:
    """The last level of the Gaussian pyramid of each image, 14x14 or 16x16, as a vector: float32 (N, d)."""
    levels = [gaussian_pyramid(images[chunk])[-1] for chunk in chunks(*images.shape[:3])]
    return np.concatenate(levels).reshape(len(images), -1)


def nearest(images: np.ndarray, faces: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest face to each of `images`: its index in `faces`, (N,), and its distance, (N,).

    faces: uint8 (M, H, W, C), which may be memory-mapped. candidates: the indices of the faces to choose from.
    The distance is the root mean square difference, on a scale of 0..255, of images blurred and reduced to 14 or 16
    pixels: fine detail, which is never copied exactly, does not count.
    """
    vectors = coarse_vectors(images)
    indices, min_scores = np.zeros(len(images), int), np.full(len(images), np.inf)
    for chunk in chunks(len(candidates), *images.shape[1:3]):
        others = coarse_vectors(faces[candidates[chunk]])
        # |x - y|^2 = |x|^2 + |y|^2 - 2xy, where |x|^2 is the same for all y.
        scores = np.square(others).sum(axis=1) - 2 * vectors @ others.T
        closer = scores.min(axis=1) < min_scores
        indices[closer] = candidates[chunk][scores[closer].argmin(axis=1)]
        min_scores = np.minimum(min_scores, scores.min(axis=1))
    # Scores have rounding errors. The distance itself is computed exactly, so that of a copy is 0.
    return indices, np.sqrt(np.square(vectors - coarse_vectors(faces[indices])).mean(axis=1))
