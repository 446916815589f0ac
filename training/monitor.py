"""Training health: the distance of samples to held-out faces, and collapse detection."""

import math
from functools import cached_property
from typing import NamedTuple

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
MAX_LOSS = 100.0  # loss of a network that is exploding; the largest of healthy trainings, in their first steps, is 20
MIN_SHARE = 0.1  # ratio of the contents of generated faces to real ones, below which they count as failed
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


class Contents(NamedTuple):
    """What a set of faces contains, by which failed ones are recognised."""

    diversity: float  # the standard deviation over faces of each value, averaged over all values
    midtones: float  # the share of values other than 0 and 255


def contents(faces: np.ndarray) -> Contents:
    """The contents of faces, uint8 (N, H, W, C)."""
    return Contents(float(np.std(faces, axis=0).mean()), float(np.mean((faces > 0) & (faces < 255))))


def sign_of_failure(system: System, d_loss: float, g_loss: float, drawn: Contents, real: Contents) -> str | None:
    """The sign that the training fails, or None. d_loss, g_loss: mean losses. drawn, real: contents of faces."""
    # Losses that grow without limit, or that cannot get lower.
    if max(abs(d_loss), abs(g_loss)) > MAX_LOSS:
        return f'the losses explode (discriminator {d_loss:.4g}, generator {g_loss:.4g})'
    # The lowest loss is the entropy of the labels.
    labels = [label + (1 - 2 * label) * system.label_noise / 2 for label in (system.real_label, system.fake_label)]
    lowest = sum(p * math.log(1 / p) for label in labels for p in (label, 1 - label) if p)
    if d_loss < lowest + LOSS_MARGIN:
        return f'the discriminator separates real from generated faces (loss {d_loss:.4f}, minimum {lowest:.4f})'

    # Faces that are all the same, or black and white although the real ones are not.
    if drawn.diversity < real.diversity * MIN_SHARE:
        return f'the faces hardly differ (diversity {drawn.diversity:.2f}, real faces {real.diversity:.2f})'
    if drawn.midtones < real.midtones * MIN_SHARE:
        return f'the values of {1 - drawn.midtones:.1%} of all pixels are 0 or 255 (real faces {1 - real.midtones:.1%})'
    return None


class FailureMonitor:
    """Warns once when a run keeps failing. healthy: the last step without a sign of failure."""

    def __init__(self, run: Run, step: int):
        self.run, self.real = run, contents(run.real_samples)
        self.healthy, self.failing, self.warned = step, 0, False

    def check(self, step: int, d_loss: float, g_loss: float, faces: np.ndarray, log: Log) -> None:
        """Look for signs of failure. d_loss, g_loss: the means since the last check; faces: samples."""
        sign = sign_of_failure(self.run.system, d_loss, g_loss, contents(faces), self.real)
        if sign is None:
            self.healthy, self.failing, self.run.warning = step, 0, ''
            return
        self.failing += 1
        if self.warned or self.failing < FAILING_SAMPLES or step - self.healthy < FAILING_STEPS:
            return
        self.warned = True
        directory = self.run.directory
        warning = f'Warning: since step {self.healthy} {sign}; {advice_to_go_back(directory, self.healthy)}'
        self.run.warning = warning
        log.print(warning)
        with open(directory / 'warnings.log', 'a', encoding='utf-8', errors='surrogateescape') as file:
            file.write(f'Step {step}. {warning}\n')
