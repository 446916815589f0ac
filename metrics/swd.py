"""The sliced Wasserstein distance (SWD) between two sets of images, uint8 (N, H, W, C), and image pyramids."""

import itertools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# The values published by Karras et al., except where noted.
BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16  # filter of the pyramid
MIN_SIDE = 14  # smallest side of a level, pixels; published: 16, with the same levels for 2^n pixels
PATCH_SIDE, PATCHES = 7, 128  # side of a patch, pixels; patches per image and level
DIRECTIONS, DIRECTIONS_AT_ONCE = 512, 64  # projections, in total and at a time; published: 4 times 128
PIXELS_AT_ONCE = 1 << 20  # pixels per chunk, to save memory


def subset(indices: np.ndarray, max_count: int) -> np.ndarray:
    """At most `max_count` of `indices`, in order: a random choice with a fixed seed."""
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
    """`images` interpolated to twice their height and width."""
    # Three of four pixels are zero, so the others are multiplied by 4.
    spread = np.zeros(images.shape * np.array([1, 2, 2, 1]), images.dtype)
    spread[:, ::2, ::2] = 4 * images
    return blurred(spread)


def gaussian_pyramid(images: np.ndarray) -> list[np.ndarray]:
    """`images` at full size, 1/2, 1/4, ... until the sides are odd or would be below MIN_SIDE: float32."""
    levels = [images.astype(np.float32)]
    while min(sides := levels[-1].shape[1:3]) >= 2 * MIN_SIDE and not any(side % 2 for side in sides):
        levels.append(blurred(levels[-1])[:, ::2, ::2])
    return levels


def laplacian_pyramid(images: np.ndarray) -> list[np.ndarray]:
    """The detail that each level of the Gaussian pyramid adds to the next, and the last level itself.

    float32 (N, H, W, C), finest first: 28 and 14 pixels for 28x28. Burt and Adelson (1983).
    """
    levels = gaussian_pyramid(images)
    return [fine - upsampled(coarse) for fine, coarse in itertools.pairwise(levels)] + levels[-1:]


def descriptors(images: np.ndarray, level: int, corners: np.ndarray) -> np.ndarray:
    """Patches of one level of the Laplacian pyramid, each channel normalised: float32 (N * n, C * PATCH_SIDE**2).

    corners: (N, n, 2), row and column of the top left pixel of n patches in each image.
    """
    # Cut out the patches.
    patches = np.empty((*corners.shape[:2], images.shape[-1], PATCH_SIDE, PATCH_SIDE), np.float32)
    for chunk in chunks(*images.shape[:3]):
        windows = sliding_window_view(laplacian_pyramid(images[chunk])[level], (PATCH_SIDE, PATCH_SIDE), (1, 2))
        rows, columns = np.moveaxis(corners[chunk], -1, 0)
        patches[chunk] = windows[np.arange(len(windows))[:, None], rows, columns]
    # Normalise each channel to mean 0 and standard deviation 1, which is 0 if all pixels are the same.
    for values in np.moveaxis(patches, 2, 0):
        values -= values.mean(dtype=np.float64).astype(np.float32)
        values /= max(1e-6, np.sqrt(np.mean(values * values, dtype=np.float64)))
    return patches.reshape(corners.shape[0] * corners.shape[1], -1)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> float:
    """The mean Wasserstein distance of two equally large sets of vectors (n, d), projected onto random directions."""
    # Sample unit vectors.
    directions = rng.standard_normal((DIRECTIONS, a.shape[1]))
    directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    means = []
    for some in np.split(directions, DIRECTIONS // DIRECTIONS_AT_ONCE):
        # In one dimension, sorting gives the optimal matching (Rabin et al., 2011).
        left, right = (np.sort(some @ vectors.T, axis=1) for vectors in (a, b))
        means.append(np.abs(left - right).mean(dtype=np.float64))
    return float(np.mean(means))


def swd(generated: np.ndarray, real: np.ndarray, seed: int = 0) -> dict[str, float]:
    """SWD x 1000 by level of the Laplacian pyramid, such as 28x28 (fine detail) and 14x14 (overall picture).

    Lower is better. The larger set is cut to the size of the smaller; compare only results for equally many images.
    Karras et al. (2018, arXiv:1710.10196), with two differences: MIN_SIDE, and patches at the same positions in both
    sets, so that the positions do not add to the distance.
    """
    count, rng = min(len(generated), len(real)), np.random.default_rng(seed)
    distances: dict[str, float] = {}
    for level, (_, height, width, _) in enumerate(each.shape for each in gaussian_pyramid(generated[:1])):
        corners = rng.integers(0, [height - PATCH_SIDE + 1, width - PATCH_SIDE + 1], (count, PATCHES, 2))
        a, b = (descriptors(images[:count], level, corners) for images in (generated, real))
        distances[f'{height}x{width}'] = 1000 * sliced_wasserstein(a, b, rng)
    return distances
