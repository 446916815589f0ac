"""Directions in the space of latents: the strongest ones of a generator, and sums of faces."""

import numpy as np

from sampling.generator import Generator, folded_layers
from systems import System

STANDARD_DEVIATIONS = range(-2, 3)  # along a direction, how far each face of a row is from the one in the middle
NOISE = 0.25  # the paper's: how much the values of the latents around the result of a sum differ at most


def first_layer(generator: Generator) -> np.ndarray:
    """The weights of the first layer, (z_dim, units), as if it had no batch normalisation.

    With stored statistics that is one factor for each channel, so that layer and normalisation are one matrix.
    """
    return next(folded_layers(generator))[0]


def strongest_directions(weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` directions along which the output of the first layer changes most, in closed form.

    weights: (z_dim, units), as `first_layer` has them. Returns unit vectors (count, z_dim), the strongest
    first, and the fraction of the layer's variance that each accounts for, (count,). They are the eigenvectors of
    weights @ weights.T with the largest eigenvalues (SeFa; Shen and Zhou, 2021, arXiv:2007.06600).
    """
    vectors, values, _ = np.linalg.svd(weights, full_matrices=False)
    directions = vectors.T[:count]
    largest = np.abs(directions).argmax(axis=1, keepdims=True)
    directions *= np.sign(np.take_along_axis(directions, largest, axis=1))  # which is arbitrary otherwise
    return directions, (values**2 / np.sum(values**2))[:count]


def walk(system: System, latents: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Latents on both sides of `latents` (N, z_dim) along `direction`, a unit vector: (N, steps, z_dim).

    The steps are STANDARD_DEVIATIONS, of one value of a latent: a unit vector has the same in any direction.
    """
    deviation = 1 if system.latent == 'normal' else 3**-0.5
    return latents[:, None] + deviation * np.outer(STANDARD_DEVIATIONS, direction)


def add_up(latents: np.ndarray, terms: list[tuple[int, list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """The means of terms, (n, z_dim), and their sum, (z_dim,).

    terms: for each the sign, 1 or -1, and the indices of `latents` (N, z_dim) to take the mean of. Means of
    several faces are steadier than single ones (Radford et al., 2015, arXiv:1511.06434, section 6.3.2).
    """
    means = np.array([latents[indices].mean(axis=0) for _, indices in terms])
    signs = np.array([sign for sign, _ in terms], np.float32)
    return means, signs @ means


def surrounded(latent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`latent` (z_dim,) in the middle of eight near it, as the paper draws it: (9, z_dim)."""
    noise = rng.uniform(-NOISE, NOISE, (9, len(latent))).astype(np.float32)
    noise[4] = 0
    return latent + noise
