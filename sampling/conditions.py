"""Conditional sampling: latents that end with a condition, 1 (with) or -1 (without) for each attribute.

Code that only passes latents on therefore needs no special case for conditional generators.
"""

from dataclasses import dataclass

import numpy as np

from common.cli import UserError
from systems import System


@dataclass(frozen=True)
class Conditions:
    """The attributes of a generator, and the combinations of them that conditions are sampled from."""

    names: tuple[str, ...]
    combinations: tuple[str, ...]  # a digit for each attribute: '101' is with, without, with

    @classmethod
    def of(cls, system: System) -> 'Conditions':
        """The conditions of a system's training data."""
        return cls(system.attributes, system.combinations)

    @property
    def are_classes(self) -> bool:
        """Whether the attributes exclude each other: every combination has exactly one."""
        return all(combination.count('1') == 1 for combination in self.combinations)

    def asked(self, wanted: dict[str, bool]) -> 'Conditions':
        """Only the combinations with the values `wanted`. Raises UserError for unknown or contradictory ones."""
        if wanted and not self.names:
            raise UserError('this generator was trained without --attributes: leave out --with and --without')
        if unknown := [name for name in wanted if name not in self.names]:
            known = ', '.join(self.names)
            raise UserError(f'unknown attribute {", ".join(unknown)}: this generator was trained with {known}')
        # Keep the combinations that fit. If there are none, change the values asked for in all of them: a face may
        # have two attributes that never occurred together, but not two classes, or none.
        digits = {self.names.index(name): '01'[value] for name, value in wanted.items()}
        occurring = [each for each in self.combinations if all(each[i] == digit for i, digit in digits.items())]
        if wanted and not occurring and self.are_classes:
            raise UserError(f'every face has exactly one of {", ".join(self.names)}: choose one --with')
        changed = [''.join(digits.get(i, digit) for i, digit in enumerate(each)) for each in self.combinations]
        return Conditions(self.names, tuple(occurring or changed))

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """A random condition: float32 (attributes,) of 1 and -1."""
        combination = self.combinations[int(rng.random() * len(self.combinations))]
        return np.array([1 if digit == '1' else -1 for digit in combination], np.float32)

    def switched(self, latents: np.ndarray, name: str, on: bool = True) -> np.ndarray:
        """A copy of `latents` (N, z_dim) with one attribute switched on or off."""
        latents = latents.copy()
        conditions = latents[:, -len(self.names) :]
        # Classes exclude each other: switching one on switches the rest off.
        if on and self.are_classes:
            conditions[:] = -1
        conditions[:, self.names.index(name)] = 1 if on else -1
        return latents
