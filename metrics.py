"""How good are the faces, how varied, and are they copies? Measures of sets of images, uint8 (N, H, W, 3)."""

import itertools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# Of the sliced Wasserstein distance, as published: the filter of the pyramid, patches and directions.
BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16
LEAST_SIDE = 14  # of a level, pixels; published with images of 2^n, for which it is the same as their 16
PATCH, PATCHES = 7, 128  # side, and how many of an image and level
DIRECTIONS = 512  # published as 4 times 128
DIRECTIONS_AT_ONCE = 64
LEAST_STDDEV = 1e-6  # where all pixels are the same there is nothing to divide by
PIXELS_AT_ONCE = 1 << 20
# Of MS-SSIM, as published: the weights of the scales, the finest first, and the side of the window.
SCALE_WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])
WINDOW = 11


def chunks(count, side):
    """Yield the slices of `count` images of side `side` that are computed with at once."""
    at_once = max(1, PIXELS_AT_ONCE // side**2)
    for start in range(0, count, at_once):
        yield slice(start, start + at_once)


# --- quality


def blurred(images, kernel) -> np.ndarray:
    """`images` (N, H, W, 3) filtered with `kernel` (5,) along rows and columns, mirrored at the borders."""
    for axis in (1, 2):
        margins = [(2, 2) if number == axis else (0, 0) for number in range(4)]
        windows = sliding_window_view(np.pad(images, margins, mode='reflect'), len(kernel), axis)
        images = sum(weight * windows[..., number] for number, weight in enumerate(kernel))
    return images


def downsampled(images) -> np.ndarray:
    """`images` (N, H, W, 3) blurred, every second row and column of them."""
    return blurred(images, BINOMIAL)[:, ::2, ::2]


def upsampled(images) -> np.ndarray:
    """`images` (N, H, W, 3) at twice their height and width."""
    count, height, width, channels = images.shape
    spread = np.zeros((count, 2 * height, 2 * width, channels), images.dtype)
    spread[:, ::2, ::2] = images
    return blurred(spread, 2 * BINOMIAL)  # three of four pixels are zero: the filter is 4 times as high


def gaussian_pyramid(images) -> list[np.ndarray]:
    """`images` (N, H, W, 3), and them at half the size, at a quarter, as far as LEAST_SIDE; float32."""
    levels = [images.astype(np.float32)]
    while levels[-1].shape[1] >= 2 * LEAST_SIDE:
        levels.append(downsampled(levels[-1]))
    return levels


def laplacian_pyramid(images) -> list[np.ndarray]:
    """What each level of the Gaussian pyramid has and the next lacks, the finest first, and the last itself.

    Burt and Adelson, 1983. float32 (N, side, side, 3); for 28x28 the sides are 28 and 14.
    """
    levels = gaussian_pyramid(images)
    return [fine - upsampled(coarse) for fine, coarse in itertools.pairwise(levels)] + levels[-1:]


def descriptors(images, level, corners) -> np.ndarray:
    """Patches of one level of the Laplacian pyramid, float32 (N * n, 147), each channel of mean 0 and deviation 1.

    corners: row and column of the first pixel of n patches of each image, (N, n, 2).
    """
    patches = np.empty((*corners.shape[:2], 3, PATCH, PATCH), np.float32)
    for chunk in chunks(*images.shape[:2]):
        windows = sliding_window_view(laplacian_pyramid(images[chunk])[level], (PATCH, PATCH), (1, 2))
        rows, columns = np.moveaxis(corners[chunk], -1, 0)
        patches[chunk] = windows[np.arange(len(windows))[:, None], rows, columns]
    for channel in range(3):
        values = patches[:, :, channel]
        values -= values.mean(dtype=np.float64).astype(np.float32)
        values /= max(LEAST_STDDEV, np.sqrt(np.mean(values * values, dtype=np.float64)))
    return patches.reshape(-1, 3 * PATCH * PATCH)


def sliced_wasserstein(a, b, rng) -> float:
    """The mean over random directions of the distance between two sets of as many vectors (n, d), projected.

    In one dimension the Wasserstein distance is that between the sorted values (Rabin et al., 2011).
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


def swd(drawn, real, seed=0) -> dict[int, float]:
    """The sliced Wasserstein distance x1000 between two sets of images at each level of the Laplacian pyramid.

    By the level's side, 28 and 14 for images of 28x28: of fine detail first, of the coarse picture last. 0 for sets
    that are the same; lower is better. Karras et al., 2018 (arXiv:1710.10196), but for two things: levels end at 14
    pixels where those of 2^n end at 16, and the patches of both sets are at the same places, so that they add no
    distance. The larger set is cut to the size of the smaller: distances of other numbers of images compare ill.
    """
    count, side = min(len(drawn), len(real)), drawn.shape[1]
    rng = np.random.default_rng(seed)
    distances = {}
    while side >= LEAST_SIDE:
        corners = rng.integers(0, side - PATCH + 1, (count, PATCHES, 2))
        vectors = (descriptors(images[:count], len(distances), corners) for images in (drawn, real))
        distances[side] = 1000 * sliced_wasserstein(*vectors, rng)
        side //= 2
    return distances


# --- variety


def ms_ssim(left, right) -> np.ndarray:
    """How alike are two images? The multi-scale structural similarity of each pair, float32 (N,), 0 to 1: the same.

    left, right: uint8 (N, H, W, 3) each. Wang et al., 2003, with as many of its five scales as are no smaller than
    the window, two for 28x28, their weights divided by their sum; the mean of the three channels.
    """
    from runtime import open_session, tf

    scales = sum(left.shape[1] >> scale >= WINDOW for scale in range(len(SCALE_WEIGHTS)))
    weights = SCALE_WEIGHTS[:scales] / SCALE_WEIGHTS[:scales].sum()
    with tf.Graph().as_default():
        pair = [tf.placeholder(tf.uint8, [None, *left.shape[1:]]) for _ in range(2)]
        similarity = tf.image.ssim_multiscale(*pair, max_val=255, power_factors=weights, filter_size=WINDOW)
        with open_session() as session:
            parts = [
                session.run(similarity, {pair[0]: left[chunk], pair[1]: right[chunk]})
                for chunk in chunks(*left.shape[:2])
            ]
    return np.concatenate(parts)


def mean_ms_ssim(images, seed=0) -> float:
    """The mean MS-SSIM of random pairs of at least two images: lower is more varied (Odena et al., 2017).

    Each image is in two pairs.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    return float(ms_ssim(images[order], images[np.roll(order, 1)]).mean())


# --- copies


def blurred_small(images) -> np.ndarray:
    """`images` (N, H, W, 3) as the last level of their Gaussian pyramid, 14 or 16 pixels high; float32 (N, d)."""
    parts = [gaussian_pyramid(images[chunk])[-1] for chunk in chunks(*images.shape[:2])]
    return np.concatenate(parts).reshape(len(images), -1)


def nearest(images, faces, among) -> tuple[np.ndarray, np.ndarray]:
    """Which of `faces` is nearest to each of `images`, (N,), and how far away, (N,).

    faces: uint8 (M, H, W, 3), memory-mapped perhaps. among: the numbers of those that are compared with; so are those
    returned. The distance is the root of the mean squared difference of values in 0..255, of the images blurred and
    scaled down to 14 or 16 pixels: fine detail, which is never copied to the pixel, does not count.
    """
    small = blurred_small(images)
    numbers, least = np.zeros(len(images), int), np.full(len(images), np.inf)
    for chunk in chunks(len(among), images.shape[1]):
        some = blurred_small(faces[among[chunk]])
        # |x - y|^2 = |x|^2 + |y|^2 - 2xy, and |x|^2 is the same for all y.
        scores = np.square(some).sum(axis=1) - 2 * small @ some.T
        best = scores.argmin(axis=1)
        score = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
        closer = score < least
        numbers[closer], least[closer] = among[chunk][best[closer]], score[closer]
    # That was rounded; a copy has distance 0.
    return numbers, np.sqrt(np.square(small - blurred_small(faces[numbers])).mean(axis=1))
