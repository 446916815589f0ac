"""Latents: sampled, scaled, interpolated, and read from files."""

from pathlib import Path

import numpy as np

from common.cli import UserError, number
from sampling.conditions import Conditions
from systems import System

MAX_FACES = 1_000_000  # limit for the number of faces
INDEX = number(int, 0, MAX_FACES - 1)  # argparse type of the index of a face
STEPS_PER_LEG = 10  # frames of an interpolation from one latent to just before the next
MAX_VALUE = 1000  # limit for the values of latents in files, far outside of any prior: larger ones would overflow


def sample_latents(
    system: System, rng: np.random.Generator, count: int, truncate: float = 1.0, conditions: Conditions | None = None
) -> np.ndarray:
    """Sample latents from the prior, U(-1, 1) or N(0, 1), times `truncate`: float32 (count, z_dim).

    truncate: below 1, faces are more typical, less varied and paler. Scaling (Karras et al., 2019, arXiv:1812.04948)
    keeps the identity of each face; the truncation of Brock et al. (2019, arXiv:1809.11096) does not.
    conditions: sampled from the training data by default.
    """

    def sample(count: int) -> np.ndarray:
        shape = count, system.latent_size
        latents = rng.standard_normal(shape) if system.latent == 'normal' else rng.uniform(-1, 1, shape)
        return (latents * truncate).astype(np.float32)

    if not system.attributes:
        return sample(count)
    # Sample latent and condition in turn, so that no row depends on how many are sampled.
    conditions = conditions or Conditions.of(system)
    rows = [np.append(sample(1), conditions.sample(rng)) for _ in range(count)]
    return np.array(rows, np.float32).reshape(count, system.z_dim)


def lerp(start: np.ndarray, end: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Linear interpolation between two latents (latent_size,) at `t` (n,), from 0 to 1: (n, latent_size)."""
    return np.outer(1 - t, start) + np.outer(t, end)


def slerp(start: np.ndarray, end: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Spherical linear interpolation (Shoemake, 1985): like `lerp`, but along a great circle.

    Normal latents lie close to a sphere, and a straight line would pass through its nearly empty interior (White,
    2016, arXiv:1609.04468). Falls back to `lerp` if the latents are parallel or opposite, or one of them is zero.
    """
    norms = np.linalg.norm(start) * np.linalg.norm(end)
    angle = np.arccos(np.clip(np.dot(start, end) / norms, -1, 1)) if norms else 0
    if np.sin(angle) < 1e-6:
        return lerp(start, end, t)
    return (np.outer(np.sin((1 - t) * angle), start) + np.outer(np.sin(t * angle), end)) / np.sin(angle)


def faces_of_walk(text: str) -> list[int]:
    """An argparse type: '3,8,12' as the indices [3, 8, 12], and '3', the number of faces, as [0, 1, 2]."""
    if ',' not in text:
        return list(range(number(int, 2, 1000)(text)))
    return [INDEX(index.strip()) for index in text.split(',')]


def interpolate(system: System, latents: np.ndarray, steps: int = STEPS_PER_LEG) -> np.ndarray:
    """A closed path through `latents` (N, z_dim): float32 (N * steps, z_dim); the first is not repeated.

    Normal latents follow great circles; uniform latents, and all conditions, follow straight lines.
    """
    size, curve = system.latent_size, slerp if system.latent == 'normal' else lerp
    t, legs = np.arange(steps) / steps, []
    latents = latents.astype(np.float64)
    for start, end in zip(latents, np.roll(latents, -1, axis=0), strict=True):
        legs.append(np.hstack([curve(start[:size], end[:size], t), lerp(start[size:], end[size:], t)]))
    return np.concatenate(legs).astype(np.float32)


def load_latents(paths: list[Path], size: int) -> np.ndarray:
    """Load latents, (size,) or (n, size), from .npy files: float32 (N, size). Raises OSError and UserError."""
    loaded = []
    for path in paths:
        # Read the header without loading the array, which may be huge.
        try:
            latents = np.atleast_2d(np.lib.format.open_memmap(path, mode='r'))
        except OSError:
            raise
        except Exception:  # NumPy raises any exception for a damaged header
            raise UserError(f'{path} is not a .npy file of numbers, or is damaged') from None
        # Refuse other types and shapes, and values that are too large, infinite or not a number.
        if latents.dtype.kind not in 'fiu' or not latents.size or latents.shape[1:] != (size,):
            shape = 'x'.join(map(str, latents.shape))
            raise UserError(f'{path}: expected real numbers of shape Nx{size}, found {latents.dtype} {shape}')
        valid = ((latents >= -MAX_VALUE) & (latents <= MAX_VALUE)).all(axis=1)
        if not valid.all():
            value = f'a value that is not a number from -{MAX_VALUE} to {MAX_VALUE}'
            raise UserError(f'{path}: latent {valid.argmin()} has {value}')
        loaded.append(latents.astype(np.float32))
    return np.concatenate(loaded)
