"""What does a training show and keep while it runs? Its log, grids of samples, checkpoints, comparisons, warnings."""

import csv
import math
import statistics
import time
from pathlib import Path

import numpy as np

import cli
import generate
import helper
import metrics
import rundir
import show
from rundir import LOG_COLUMNS
from settings import chosen_system
from systems import System

STATISTICS_BATCH = 512  # faces that the batch norm statistics of the samples are taken from
MOST_EVALUATED = 1024  # faces that --evaluate-every draws, and compares with as many
LONG_TERM_CHECKPOINTS = 10  # --keep-every is chosen so that a run keeps no more
# A training that fails: the discriminator's loss so close to the least possible, or so little of the diversity
# of real faces, in as many samples and steps one after another.
LOSS_MARGIN = 0.01
LEAST_DIVERSITY = 0.1
FAILING_SAMPLES, FAILING_STEPS = 3, 1000


def save_checkpoint(session, built, run_dir: Path, kind, step):
    """Save all variables as checkpoints/KIND-STEP. Raises UserError where it cannot be written."""
    from runtime import tf

    path = run_dir / 'checkpoints' / kind
    try:
        built.saver.save(session, str(path), step, write_meta_graph=False, write_state=False)
    except tf.errors.OpError:  # its first line says nothing
        rundir.remove_leftovers(run_dir)
        raise cli.UserError(
            f'no checkpoint of step {step}: {path.parent} cannot be written, a full disk perhaps; '
            'those from before are whole'
        ) from None


def show_generator_output(session, built, latents, path: Path):
    """Draw faces into a grid, a PNG file. Returns them, uint8 (N, H, W, 3), and the grid."""
    faces = helper.to_uint8(session.run(built.samples, {built.input_z: latents}), (-1, 1))
    grid = helper.images_square_grid(faces)
    with helper.replacing(path) as temporary:
        grid.save(temporary)
    return faces, grid


def diversity(faces) -> float:
    """How much faces, uint8 (N, H, W, 3), differ from one another: the mean of each value's standard deviation."""
    return float(np.std(faces, axis=0).mean())


def sign_of_failure(system: System, d_loss, drawn, real) -> str | None:
    """What shows that the training fails, None if nothing does.

    d_loss: the discriminator's mean loss; drawn, real: the diversity of faces.
    """
    labels = [label + (1 - 2 * label) * system.label_noise / 2 for label in (system.real_label, system.fake_label)]
    floor = sum(p * math.log(1 / p) for label in labels for p in (label, 1 - label) if p)  # of the loss: their entropy
    if d_loss < floor + LOSS_MARGIN:
        return f'the discriminator tells all faces apart (its loss is {d_loss:.4f}, at least {floor:.4f} in any case)'
    if drawn < real * LEAST_DIVERSITY:
        return f'the faces are nearly all the same (diversity {drawn:.2f}, of real ones {real:.2f})'
    return None


class Record:
    """What is written to a run directory, and said, from step to step.

    stack: a `contextlib.ExitStack` that closes its files. built: see `train.Graph`. settings: see `choose_settings`.
    faces: uint8 (N, H, W, 3). step: that of the weights in `session`. length: the steps of an epoch, and of the whole
    run. preview: show the faces on the terminal, too.
    """

    def __init__(self, stack, session, built, settings, faces, run_dir: Path, step, length, preview):
        from runtime import tf

        self.session, self.built, self.run_dir, self.preview = session, built, run_dir, preview
        self.system = chosen_system(settings)
        self.epoch_steps, self.last_step = length
        self.last_epoch = math.ceil(self.last_step / self.epoch_steps)
        self.sample_every = settings['sample_every'] or settings['sample_epochs'] * self.epoch_steps
        keep_every = settings['keep_every'] or math.ceil(self.last_epoch / LONG_TERM_CHECKPOINTS)
        self.save_every, self.keep_every = settings['checkpoint_every'], keep_every * self.epoch_steps
        self.evaluate_every = settings['evaluate_every']

        def latents(seed, count):
            return generate.draw_latents(self.system, np.random.default_rng(seed), count)

        seed = settings['seed']
        # The grids show the first faces that `generate.py --seed SEED` draws.
        self.sample_z, self.statistics_z = latents(seed, self.system.samples), latents((2, seed), STATISTICS_BATCH)
        training, held_out = helper.split(len(faces))
        self.real = next(helper.get_batches(faces, min(self.system.samples, len(training)), seed, 0))
        if self.evaluate_every:
            self.unseen = faces[helper.sample(held_out, MOST_EVALUATED)]
            self.unseen_z = latents((3, seed), len(self.unseen))

        rundir.open_run(run_dir, settings, faces)
        rundir.go_back(run_dir, step)
        self.least = rundir.least_distance(run_dir)
        self.log = stack.enter_context(open(run_dir / 'log.csv', 'a', newline=''))  # noqa: SIM115
        events = run_dir / f'events.out.tfevents.{time.time():.0f}.from-step-{step}'
        self.events = stack.enter_context(tf.io.TFRecordWriter(str(events)))
        show.add_event(self.events, file_version='brain.Event:2')
        # Hides what came after `step` in the files of earlier processes.
        show.add_event(self.events, step=step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))
        self.bar = stack.enter_context(helper.progress(total=self.last_step, initial=step, unit=' steps'))
        self.recent, self.scores = [], []  # since the last grid
        self.healthy, self.failing, self.warned = step, 0, False
        if step == 0:
            self.show_start()

    def show_start(self):
        """Show the untrained generator's faces beside real ones."""
        graph = self.built.graph.as_graph_def().SerializeToString()
        show.add_event(self.events, graph_def=graph)
        self.refresh_statistics()
        _, grid = self.draw_samples(0)
        real = helper.images_square_grid(self.real)
        with helper.replacing(self.run_dir / 'samples' / 'start.png') as temporary:
            show.side_by_side(grid, real).save(temporary)
        show.add_event(self.events, step=0, summary=show.summary(images={'faces': grid, 'real faces': real}))
        if self.preview:
            self.bar.write(f'Real faces:\n{show.preview(self.real)}')

    def add(self, step, losses, d_real, d_fake, images_per_second, last):
        """Log a step, and do whatever is due after it.

        losses: the discriminator's and the generator's. d_real, d_fake: D(x) and D(G(z)) of each image. last: whether
        it is the last step. Raises UserError when a loss or a weight is not finite; such weights are never saved.
        """
        scalars = [*losses, d_real.mean(), d_fake.mean()]
        self.recent.append((*scalars, images_per_second))
        self.scores.append((d_real, d_fake))
        sample = last or step % self.sample_every == 0
        save = last or step % self.save_every == 0
        keep = step % self.keep_every == 0
        compare = self.evaluate_every and (last or step % self.evaluate_every == 0)
        pause = sample or save or keep or compare
        if not np.isfinite(scalars).all() or (pause and not self.session.run(self.built.weights_finite)):
            raise cli.UserError(
                f'the training diverged: not finite at step {step}. The checkpoints in {self.run_dir} are '
                'from before: go on from one with --resume, or start again with a lower --learning-rate'
            )
        if pause:
            self.refresh_statistics()
        distance = self.compare(step) if compare else None
        numbers = [f'{value:.6g}' for value in self.recent[-1]]
        row = [step, self.epoch(step), *numbers, '' if distance is None else f'{distance:.6g}']
        csv.writer(self.log, lineterminator='\n').writerow(row)
        if pause:
            self.log.flush()
        if compare and distance < self.least:
            self.least = distance
            self.save('best', step)
        if save:
            self.save('step', step)
        if keep:
            self.save('keep', step)
        if sample:
            self.sample(step)
        self.bar.update()

    def epoch(self, step) -> int:
        """The epoch that a step is in, the first is 1."""
        return math.ceil(step / self.epoch_steps)

    def refresh_statistics(self):
        self.session.run(self.built.refresh_statistics, {self.built.input_z: self.statistics_z})

    def compare(self, step) -> float:
        """The mean over the levels of the distance of drawn faces to held-out ones: see `metrics.swd`."""
        drawn = generate.draw(self.session, self.built.input_z, self.built.samples, self.unseen_z)
        distances = metrics.swd(np.concatenate(list(drawn)), self.unseen)
        distance = float(np.mean(list(distances.values())))
        levels = {f'SWD x1000, {side}x{side}': value for side, value in distances.items()}
        show.add_event(self.events, step=step, summary=show.summary(levels))
        self.bar.write(f'Step {step}: distance to held-out faces {distance:.2f}, the least before {self.least:.2f}')
        return distance

    def save(self, kind, step):
        save_checkpoint(self.session, self.built, self.run_dir, kind, step)
        rundir.delete_old(self.run_dir, self.healthy)

    def grid(self, step) -> Path:
        """Where the faces of a step are."""
        return self.run_dir / 'samples' / f'step-{step:08}.png'

    def draw_samples(self, step):
        return show_generator_output(self.session, self.built, self.sample_z, self.grid(step))

    def sample(self, step):
        """Draw the grid and the curves, and say the means since the last grid."""
        drawn, grid = self.draw_samples(step)
        show.plot_losses(self.run_dir / 'log.csv', self.run_dir / 'losses.png')
        means = dict(zip(LOG_COLUMNS[2:-1], np.mean(self.recent, axis=0), strict=True))
        means['images_per_second'] = statistics.harmonic_mean(row[-1] for row in self.recent)
        histograms = dict(zip(('D(x)', 'D(G(z))'), np.swapaxes(self.scores, 0, 1), strict=True))
        show.add_event(self.events, step=step, summary=show.summary(means, {'faces': grid}, histograms))
        self.recent.clear()
        self.scores.clear()
        self.bar.write(
            f'Epoch {self.epoch(step)}/{self.last_epoch}, step {step}: '
            'discriminator loss {d_loss:.4f}, generator loss {g_loss:.4f}, D(x) {d_real:.3f}, '
            'D(G(z)) {d_fake:.3f}, {images_per_second:.1f} images/s, '.format(**means)
            + f'samples {self.grid(step)}'
        )
        if self.preview:
            self.bar.write(show.preview(drawn))
        self.warn(step, sign_of_failure(self.system, means['d_loss'], diversity(drawn), diversity(self.real)))

    def warn(self, step, sign):
        """Say once that the training fails, when a `sign` of it has been there for long; None is no sign."""
        self.healthy, self.failing = (self.healthy, self.failing + 1) if sign else (step, 0)
        long = self.failing >= FAILING_SAMPLES and step - self.healthy >= FAILING_STEPS
        if long and not self.warned:
            self.warned = True
            warning = f'Warning: since step {self.healthy} {sign}; {rundir.way_back(self.run_dir, self.healthy)}'
            self.bar.write(warning)
            with open(self.run_dir / 'warnings.log', 'a') as warnings:
                warnings.write(f'Step {step}. {warning}\n')
