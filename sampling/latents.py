"""Latents: sampled, scaled, interpolated, and read from files."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from common.cli import UserError
from sampling.conditions import sample_condition
from systems import System

STEPS_PER_LEG = 10  # of an interpolation: from one latent to just before the next


def sample_latents(system: System, rng: np.random.Generator, count: int, truncate: float = 1.0) -> np.ndarray:
    """Latents from the system's distribution, U(-1, 1) or N(0, 1), times `truncate`: float32 (count, z_dim).

    A `truncate` below 1 gives faces that are more typical, less varied and paler. Scaling (Karras et al., 2019,
    arXiv:1812.04948) keeps the identity of each face; the truncation of Brock et al. (2019, arXiv:1809.11096) does not.
    """
    if system.attributes:  # one by one, so that none depends on how many are drawn
        plain = replace(system, attributes=())
        singles = (sample_latents(plain, rng, 1, truncate)[0] for _ in range(count))
        rows = [np.append(latent, sample_condition(system, rng)) for latent in singles]
        return np.array(rows, np.float32).reshape(count, system.z_dim)
    shape = count, system.latent_size
    latents = rng.standard_normal(shape) if system.latent == 'normal' else rng.uniform(-1, 1, shape)
    return (latents * truncate).astype(np.float32)


def lerp(start: np.ndarray, end: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Linear interpolation: the points (n, latent_size) at `t` (n,), 0 to 1, between two latents (latent_size,)."""
    return np.outer(1 - t, start) + np.outer(t, end)


def slerp(start: np.ndarray, end: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Spherical linear interpolation (Shoemake, 1985): like `lerp`, but along a great circle.

    Normal latents lie close to a sphere, and a straight line would pass through its nearly empty interior (White,
    2016, arXiv:1609.04468). If the latents are parallel or opposite, or one of them is zero, it is `lerp`.
    """
    norms = np.linalg.norm(start) * np.linalg.norm(end)
    angle = np.arccos(np.clip(np.dot(start, end) / norms, -1, 1)) if norms else 0
    if np.sin(angle) < 1e-6:
        return lerp(start, end, t)
    return (np.outer(np.sin((1 - t) * angle), start) + np.outer(np.sin(t * angle), end)) / np.sin(angle)


def interpolate(system: System, latents: np.ndarray) -> np.ndarray:
    """A closed path through `latents` (N, z_dim) and back to the first: float32 (N * STEPS_PER_LEG, z_dim).

    It follows great circles if the system's latents are normal, otherwise straight lines, as conditions always do. The
    first is not repeated.
    """

    def between(start, end, t):
        curve, size = slerp if system.latent == 'normal' else lerp, system.latent_size
        return np.hstack([curve(start[:size], end[:size], t), lerp(start[size:], end[size:], t)])

    t, latents = np.arange(STEPS_PER_LEG) / STEPS_PER_LEG, latents.astype(np.float64)
    legs = [between(start, end, t) for start, end in zip(latents, np.roll(latents, -1, axis=0), strict=True)]
    return np.concatenate(legs).astype(np.float32)


def load_latents(paths: list[Path], size: int) -> np.ndarray:
    """The latents in .npy files, each (size,) or (n, size), one after the other: float32 (N, size).

    Raises UserError for a file that is damaged or has latents of another size, and OSError.
    """
    loaded = []
    for path in paths:
        try:
            latents = np.atleast_2d(np.lib.format.open_memmap(path, mode='r'))
        except OSError:
            raise
        except Exception:  # a damaged header makes NumPy raise nearly anything
            raise UserError(f'{path} is not a .npy file of numbers, or is damaged') from None
        if (
            not latents.size
            or latents.shape[1:] != (size,)
            or latents.dtype.kind not in 'fiu'
            or not np.isfinite(latents).all()
        ):
            shape = 'x'.join(map(str, latents.shape))
            raise UserError(f'{path} holds no latents of this generator, N rows of {size} numbers, but {shape} values')
        loaded.append(latents.astype(np.float32))
    return np.concatenate(loaded)
