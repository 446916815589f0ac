"""What the chief does next to training: it checks, evaluates, logs, saves, and warns."""

import contextlib
import time
from collections.abc import Callable

import numpy as np

from common import cli
from rundir import checkpoints
from sampling.latents import sample_latents
from training.log import Log
from training.monitor import Evaluator, FailureMonitor
from training.run import Run

STATISTICS_BATCH = 512  # generated faces for the batch norm statistics of the samples
FIRST_SAVE_SECONDS = 300  # time until the first checkpoint, even if a step takes minutes
SAVE_SECONDS = 900  # time between later checkpoints, if the schedule has none


class Chief(contextlib.ExitStack):
    """Looks after a run that trains in `session`. A context manager, which closes the log.

    model: the `train.TrainingGraph`. step: the number of steps made so far. clock: the time in seconds.
    sample_z: the latents of the grids.
    """

    def __init__(self, run: Run, session, model, step: int, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self.run, self.session, self.model, self.clock = run, session, model, clock
        self.save_time = clock() + FIRST_SAVE_SECONDS  # when a checkpoint is due
        system, seed = run.system, run.settings['seed']
        self.sample_z = sample_latents(system, np.random.default_rng(seed), system.samples)  # generate.py --seed SEED
        self.statistics_z = sample_latents(system, np.random.default_rng((2, seed)), STATISTICS_BATCH)
        self.log = self.enter_context(Log(run, step))
        self.evaluator, self.monitor = Evaluator(run), FailureMonitor(run, step)
        if step == 0:
            self.store_statistics()

    def store_statistics(self) -> None:
        """Compute the batch norm statistics of the samples from the present weights."""
        self.session.run(self.model.store_statistics, {self.model.input_z: self.statistics_z})

    def after_steps(self, step: int, losses, images_per_second: float, last: bool) -> bool:
        """Check, evaluate, log and save after a call whose last step is `step`. Returns whether a grid is due.

        losses: the `dcgan.Losses` of each step. last: the training ends. Raises UserError.
        """
        # A checkpoint is also due by time. Fail before one of bad weights is saved.
        due = self.run.due(step, last) | ({'save'} if self.clock() >= self.save_time else set())
        self.check_finite(step, losses, weights=bool(due))

        # Compare with held-out faces.
        distance = None
        if due:
            self.store_statistics()
        if 'evaluate' in due:
            distance = self.evaluator.evaluate(self.session, self.model, step, self.log)

        # Log every step.
        self.log.add_steps(step, losses, images_per_second, distance)

        # Save the nearest to held-out faces, the newest, and one every few epochs for good.
        best = distance is not None and self.evaluator.is_best(distance)
        for kind, is_due in (('best', best), ('step', 'save' in due), ('keep', 'keep' in due)):
            if is_due:
                saver, directory = self.model.saver, self.run.directory
                checkpoints.save(self.session, saver, directory, kind, step, self.monitor.healthy)
                self.save_time = self.clock() + SAVE_SECONDS
        return 'sample' in due

    def after_samples(self, step: int, faces: np.ndarray) -> None:
        """Print the losses since the last grid, and warn if the training fails. faces: the grid, uint8 (N, H, W, C)."""
        if step == 0:
            self.log.show_start(self.model.graph, faces)
            return
        means = self.log.print_losses(step, faces)
        self.monitor.check(step, means['d_loss'], means['g_loss'], faces, self.log)

    def check_finite(self, step: int, losses, weights: bool) -> None:
        """Raise UserError unless the losses of the steps up to `step`, and the `weights` if so asked, are finite."""
        finite = np.all([np.isfinite(values).reshape(len(values), -1).all(axis=1) for values in losses], axis=0)
        if finite.all() and (not weights or self.session.run(self.model.weights_finite)):
            return
        if not finite.all():
            step += 1 - len(finite) + int(finite.argmin())  # the first bad one
        raise cli.UserError(
            f'the training diverged: not finite at step {step}. The checkpoints in {self.run.directory} were saved '
            'before that: resume from one with --resume, or restart with a lower --learning-rate'
        )
