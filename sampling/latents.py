"""Latents: sampled, scaled, interpolated, and read from files."""

from pathlib import Path

import numpy as np

from common.cli import UserError
from sampling.conditions import Conditions
from systems import System

STEPS_PER_LEG = 10  # frames of an interpolation from one latent to just before the next


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


def interpolate(system: System, latents: np.ndarray) -> np.ndarray:
    """A closed path through `latents` (N, z_dim): float32 (N * STEPS_PER_LEG, z_dim); the first is not repeated.

    Normal latents follow great circles; uniform latents, and all conditions, follow straight lines.
    """
    size, curve = system.latent_size, slerp if system.latent == 'normal' else lerp
    t, legs = np.arange(STEPS_PER_LEG) / STEPS_PER_LEG, []
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
        # Refuse other shapes, empty arrays, and values that are complex, infinite or not a number.
        fits = latents.size and latents.shape[1:] == (size,) and latents.dtype.kind in 'fiu'
        if not fits or not np.isfinite(latents).all():
            shape = 'x'.join(map(str, latents.shape))
            raise UserError(f'{path}: expected finite numbers of shape Nx{size}, found {latents.dtype} {shape}')
        loaded.append(latents.astype(np.float32))
    return np.concatenate(loaded)
