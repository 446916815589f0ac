"""The log of a run: log.csv, TensorBoard events, the progress bar, and a line on the console for each grid."""

import contextlib
import csv
import io
import math
import os
import time

import numpy as np

from common import files
from common.cli import progress
from graph.session import tf
from helper import images_square_grid
from sampling.pictures import side_by_side
from training.curves import Curve, plot_losses
from training.run import Run

# Columns of log.csv that are averaged from grid to grid, and their names in TensorBoard, which groups them by the part
# up to the slash and opens the first two groups.
MEANS = {
    'd_loss': 'losses/discriminator',
    'g_loss': 'losses/generator',
    'd_real': 'scores/mean D(x)',
    'd_fake': 'scores/mean D(G(z))',
    'images_per_second': 'speed/images per second',
}
LOSSES = ('d_loss', 'g_loss', 'd_real', 'd_fake')  # the fields of `dcgan.Losses`


class Log(contextlib.ExitStack):
    """Logs the steps of a run after `step`. A context manager, which closes its files."""

    def __init__(self, run: Run, step: int):
        super().__init__()
        self.run = run

        # The curves so far, from log.csv, which grows.
        self.losses, self.distances = Curve(), Curve()
        with open(run.directory / 'log.csv', newline='') as file:
            for row in csv.DictReader(file):
                distance = float(row['swd']) if row['swd'] else None
                self.add_to_curves(float(row['step']), [float(row[name]) for name in LOSSES], distance)
        self.log = self.enter_context(open(run.directory / 'log.csv', 'a', 1, newline=''))  # noqa: SIM115

        # Not tf.summary.FileWriter: it writes in a thread, which fails on a full disk without anyone noticing.
        # TensorBoard reads the files in the order of their names, so this one must be the last, even if the clock has
        # been set back.
        began, latest = time.time(), 0.0
        for path in run.directory.glob('events.out.tfevents.[0-9]*'):
            latest = max(latest, int(path.name.split('.')[3]), path.stat().st_mtime)
        self.clock_lag = max(0.0, math.floor(latest) + 1 - began)
        path = run.directory / f'events.out.tfevents.{began + self.clock_lag:010.0f}.from-step-{step}'
        self.events = self.enter_context(tf.io.TFRecordWriter(os.fsencode(path)))
        self.bar = self.enter_context(progress(desc='Training', total=run.last_step, initial=step, unit=' steps'))
        self.reset_means()
        self.add_event(file_version='brain.Event:2')
        # TensorBoard hides what earlier processes wrote about later steps.
        self.add_event(step=step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))

    def reset_means(self) -> None:
        """Reset the sums of the steps since the last grid (sums, not lists: grids may be far apart)."""
        self.count, self.seconds = 0, 0.0
        self.sums = np.zeros(len(LOSSES))

    def add_to_curves(self, step: float, losses: list[float], distance: float | None) -> None:
        """Add a step to the curves. losses: the values of LOSSES, each a mean over the batch."""
        self.losses.add(step, *losses)
        if distance is not None:
            self.distances.add(step, distance)

    def print(self, text: str) -> None:
        """Print above the progress bar."""
        self.bar.write(text)

    def add_event(self, **event) -> None:
        """Add an event for TensorBoard, a tf.Event of these fields."""
        self.events.write(tf.Event(wall_time=time.time() + self.clock_lag, **event).SerializeToString())
        self.events.flush()

    def show_start(self, graph, faces: np.ndarray) -> None:
        """Save the faces of the untrained generator next to real ones; both and the graph go to TensorBoard."""
        grid, real = images_square_grid(faces), images_square_grid(self.run.real_samples)
        with files.replacing(self.run.directory / 'samples' / 'start.png') as temporary:
            side_by_side([grid, real]).save(temporary)
        self.add_event(graph_def=graph.as_graph_def().SerializeToString())
        self.add_event(step=0, summary=summary(images={'faces/generated': grid, 'faces/real': real}))

    def add_steps(self, step: int, losses, images_per_second: float, distance: float | None) -> None:
        """Log the steps up to `step`.

        losses: the `dcgan.Losses` of each step. distance: to held-out faces after the last step, if measured.
        """
        # The mean of each batch, (steps, losses).
        by_name = losses._asdict()
        columns = [np.reshape(by_name[name], (len(by_name[name]), -1)).mean(axis=1) for name in LOSSES]
        means = np.stack(columns, axis=1).astype(np.float64)

        # One row for each step. The distance was measured after the last one.
        rows = []
        for number, row in enumerate(means.tolist(), step - len(means) + 1):
            measured = distance if number == step else None
            values = ','.join(f'{value:.6g}' for value in (*row, images_per_second))
            rows.append(f'{number},{self.run.epoch(number)},{values},{"" if measured is None else f"{measured:.6g}"}\n')
            self.add_to_curves(number, row, measured)
        self.log.write(''.join(rows))

        self.count += len(means)
        self.sums += means.sum(axis=0)
        self.seconds += len(means) / images_per_second
        self.bar.update(len(means))

    def add_distances(self, step: int, distances: dict[str, float]) -> None:
        """Log the distances to held-out faces by pyramid level; see `metrics.swd.swd`."""
        scalars = {f'quality/SWD x1000, {level}': distance for level, distance in distances.items()}
        self.add_event(step=step, summary=summary(scalars))

    def print_losses(self, step: int, faces: np.ndarray) -> dict[str, float]:
        """Print, plot, log and return the means since the last grid, by the names of MEANS. faces: the new grid."""
        run, means = self.run, dict(zip(LOSSES, self.sums / self.count, strict=True))
        means['images_per_second'] = self.count / self.seconds
        self.reset_means()

        scalars = {MEANS[name]: mean for name, mean in means.items()}
        self.add_event(step=step, summary=summary(scalars, {'faces/generated': images_square_grid(faces)}))
        plot_losses(self.losses, self.distances, run.directory / 'losses.png')
        self.print(
            f'Epoch {run.epoch(step)}/{run.epoch(run.last_step)}, step {step}: '
            'discriminator loss {d_loss:.4f}, generator loss {g_loss:.4f}, D(x) {d_real:.3f}, '
            'D(G(z)) {d_fake:.3f}, {images_per_second:.1f} images/s, '.format(**means)
            + f'samples {run.grid(step)}'
        )
        return means


def summary(scalars=None, images=None):
    """A tf.Summary of scalars and PIL images, by name."""
    values = [tf.Summary.Value(tag=tag, simple_value=value) for tag, value in (scalars or {}).items()]
    for tag, image in (images or {}).items():
        file = io.BytesIO()
        image.save(file, 'PNG')
        encoded = {'encoded_image_string': file.getvalue(), 'colorspace': len(image.getbands())}
        picture = tf.Summary.Image(width=image.width, height=image.height, **encoded)
        values.append(tf.Summary.Value(tag=tag, image=picture))
    return tf.Summary(value=values)
