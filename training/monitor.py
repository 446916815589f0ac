"""Training health: the distance of samples to held-out faces, and collapse detection."""

import math
from functools import cached_property

import numpy as np

from metrics.swd import subset, swd
from rundir.checkpoints import advice_to_go_back, best_distance
from sampling.generator import draw
from sampling.latents import sample_latents
from systems import System
from training.log import Log
from training.run import Run

MAX_FACES = 1024  # faces drawn, and compared with as many held-out ones
LOSS_MARGIN = 0.01  # distance of a failing discriminator's loss from the lowest possible one
MIN_DIVERSITY = 0.1  # share of the diversity of real faces
# A training fails if this many grids in a row, over this many steps, show a sign of failure.
FAILING_SAMPLES, FAILING_STEPS = 3, 1000


class Evaluator:
    """Compares samples of the same latents with the same held-out faces, each time."""

    def __init__(self, run: Run):
        self.run = run

    @cached_property
    def best(self) -> float:
        """The smallest distance so far, from the log."""
        return best_distance(self.run.directory)

    @cached_property
    def held_out(self):
        return self.run.dataset.faces[subset(self.run.dataset.held_out, MAX_FACES)]

    @cached_property
    def latents(self):
        # A spawned stream: the seed (3, 0), for instance, would give the latents of `evaluate.py --seed 3`.
        rng = np.random.default_rng(np.random.SeedSequence(self.run.settings['seed'], spawn_key=(0,)))
        return sample_latents(self.run.system, rng, len(self.held_out))

    def evaluate(self, session, graph, step: int, log: Log) -> float:
        """The sliced Wasserstein distance x1000 of samples to held-out faces, averaged over the pyramid levels."""
        distances = swd(np.concatenate(list(draw(session, graph.input_z, graph.samples, self.latents))), self.held_out)
        log.add_distances(step, distances)
        distance = float(np.mean(list(distances.values())))
        before = f', best so far {self.best:.2f}' if self.best < math.inf else ''
        log.print(f'Step {step}: distance to held-out faces {distance:.2f}{before}')
        return distance

    def is_best(self, distance: float) -> bool:
        """Whether this is the smallest distance so far."""
        previous, self.best = self.best, min(distance, self.best)
        return distance < previous


def diversity(faces: np.ndarray) -> float:
    """The standard deviation over faces, uint8 (N, H, W, C), of each value, averaged over all values."""
    return float(np.std(faces, axis=0).mean())


def sign_of_failure(system: System, d_loss: float, generated: float, real: float) -> str | None:
    """The sign that the training fails, or None.

    d_loss: the discriminator's mean loss. generated, real: the diversity of generated and real faces.
    """
    lowest = 0.0
    if system.objective == 'standard':  # the entropy of the labels
        labels = [label + (1 - 2 * label) * system.label_noise / 2 for label in (system.real_label, system.fake_label)]
        lowest = sum(p * math.log(1 / p) for label in labels for p in (label, 1 - label) if p)
    if d_loss < lowest + LOSS_MARGIN:
        return f'the discriminator separates real from generated faces (loss {d_loss:.4f}, minimum {lowest:.4f})'
    if generated < real * MIN_DIVERSITY:
        return f'the faces hardly differ (diversity {generated:.2f}, real faces {real:.2f})'
    return None


class FailureMonitor:
    """Warns once when a run keeps failing. healthy: the last step without a sign of failure."""

    def __init__(self, run: Run, step: int):
        self.run, self.real = run, diversity(run.real_samples)
        self.healthy, self.failing, self.warned = step, 0, False

    def check(self, step: int, d_loss: float, faces: np.ndarray, log: Log) -> None:
        """Look for signs of failure. d_loss: the mean since the last check; faces: samples."""
        sign = sign_of_failure(self.run.system, d_loss, diversity(faces), self.real)
        if sign is None:
            self.healthy, self.failing = step, 0
            return
        self.failing += 1
        if self.warned or self.failing < FAILING_SAMPLES or step - self.healthy < FAILING_STEPS:
            return
        self.warned = True
        directory = self.run.directory
        warning = f'Warning: since step {self.healthy} {sign}; {advice_to_go_back(directory, self.healthy)}'
        log.print(warning)
        with open(directory / 'warnings.log', 'a', encoding='utf-8', errors='surrogateescape') as file:
            file.write(f'Step {step}. {warning}\n')
