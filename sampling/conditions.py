"""Asking a generator for attributes.

The condition of a latent, a value of 1 (with) or -1 (without) for each attribute, is the end of it. So whatever draws
latents and feeds them works as without attributes. Conditions are drawn from the combinations that occur in the data.
"""

from dataclasses import replace

import numpy as np

from common.cli import UserError
from systems import System


def ask(system: System, wanted: dict[str, bool]) -> System:
    """The system whose latents have the attributes `wanted`, by name, and others as they occur together with them.

    Where they never occur together, the others are as they occur at all. Raises UserError for an unknown attribute.
    """
    if wanted and not system.attributes:
        raise UserError('this generator was trained without --attributes, so it cannot be asked for any')
    if unknown := [name for name in wanted if name not in system.attributes]:
        known = ', '.join(system.attributes)
        raise UserError(f'this generator does not know the attribute {", ".join(unknown)}; it knows {known}')
    fixed = {system.attributes.index(name): '01'[value] for name, value in wanted.items()}
    changed = [
        ''.join(fixed.get(index, each) for index, each in enumerate(combination)) for combination in system.combinations
    ]
    occurring = [
        combination for combination, new in zip(system.combinations, changed, strict=True) if combination == new
    ]
    return replace(system, combinations=tuple(occurring or changed))


def sample_condition(system: System, rng: np.random.Generator) -> np.ndarray:
    """The condition of a latent, float32 (attributes,), each 1 or -1: a random one of the system's combinations."""
    combination = system.combinations[int(rng.random() * len(system.combinations))]
    return np.array([1 if each == '1' else -1 for each in combination], np.float32)


def set_attribute(system: System, latents: np.ndarray, attribute: str) -> np.ndarray:
    """`latents` (N, latent_size + attributes) with an attribute, all else being equal.

    Where attributes exclude each other, as classes do, the others are taken away.
    """
    latents = latents.copy()
    conditions = latents[:, system.latent_size :]
    if all(combination.count('1') == 1 for combination in system.combinations):
        conditions[:] = -1
    conditions[:, system.attributes.index(attribute)] = 1
    return latents
