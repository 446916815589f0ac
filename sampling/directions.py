"""Directions in latent space: the strongest ones of a generator, and arithmetic with latents."""

import re
from argparse import ArgumentTypeError

import numpy as np

from sampling.generator import Generator, folded_layers
from sampling.latents import INDEX
from systems import System

STANDARD_DEVIATIONS = range(-2, 3)  # step sizes along a direction
NOISE = 0.25  # maximal noise on the values of latents around a result (Radford et al., 2015)


def first_layer(generator: Generator) -> np.ndarray:
    """The weights of the first layer, (z_dim, units), with batch normalisation folded in."""
    return next(folded_layers(generator))[0]


def strongest_directions(weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` directions along which the output of the first layer changes most, in closed form.

    weights: (z_dim, units), as returned by `first_layer`. Returns unit vectors (count, z_dim), the strongest first,
    and the fraction of the layer's variance that each explains, (count,). They are the eigenvectors of
    weights @ weights.T with the largest eigenvalues (SeFa; Shen and Zhou, 2021, arXiv:2007.06600).
    """
    vectors, values, _ = np.linalg.svd(weights, full_matrices=False)
    directions = vectors.T[:count]
    # The sign of a singular vector is arbitrary: make its largest component positive.
    largest = np.abs(directions).argmax(axis=1, keepdims=True)
    directions *= np.sign(np.take_along_axis(directions, largest, axis=1))
    return directions, (values**2 / np.sum(values**2))[:count]


def walk(system: System, latents: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Latents on both sides of `latents` (N, z_dim) along `direction`, a unit vector: (N, steps, z_dim).

    steps: STANDARD_DEVIATIONS, multiples of the prior's standard deviation per coordinate.
    """
    deviation = 1 if system.latent == 'normal' else 3**-0.5
    return latents[:, None] + deviation * np.outer(STANDARD_DEVIATIONS, direction)


def sum_of_faces(text: str) -> list[tuple[int, list[int]]]:
    """An argparse type: '3,8 - 5,9' as [(1, [3, 8]), (-1, [5, 9])], the sign and the indices of each term."""
    # Split into signs and terms. The sign of the first term may be missing.
    signed = text if text.lstrip().startswith(('+', '-')) else f'+{text}'
    _, *pieces = re.split(r'([+-])', signed)
    try:
        return [
            (-1 if sign == '-' else 1, [INDEX(index.strip()) for index in term.split(',')])
            for sign, term in zip(pieces[::2], pieces[1::2], strict=True)
        ]
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error}; write a sum such as '3,8,12 - 5,9,1 + 7,2,4'") from None


def add_up(latents: np.ndarray, terms: list[tuple[int, list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean latent of each term, (n, z_dim), and the sum of the signed means, (z_dim,).

    terms: the sign, 1 or -1, and the indices of `latents` (N, z_dim) to average. Averages give more stable results
    than single faces (Radford et al., 2015, arXiv:1511.06434, section 6.3.2).
    """
    means = np.array([latents[indices].mean(axis=0) for _, indices in terms])
    signs = np.array([sign for sign, _ in terms], np.float32)
    return means, signs @ means


def surrounded(latent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`latent` (z_dim,) in the middle of eight noisy copies, as in the paper: (9, z_dim)."""
    noise = rng.uniform(-NOISE, NOISE, (9, len(latent))).astype(np.float32)
    noise[4] = 0
    return latent + noise
