"""The record of a run: log.csv, TensorBoard's events, the progress bar, and a line at every grid."""

import contextlib
import csv
import io
import itertools
import os
import time
from collections.abc import Iterable

import numpy as np

from common import files
from common.cli import progress
from graph.session import tf
from helper import images_square_grid
from sampling.pictures import side_by_side
from training.curves import Curve, plot_losses, preview
from training.run import LOG_COLUMNS, Run

HISTOGRAM_BINS = 50
# The means in TensorBoard, which makes a group of what has the same name up to the slash, and opens the first two.
SCALARS = (
    'losses/discriminator',
    'losses/generator',
    'scores/mean D(x)',
    'scores/mean D(G(z))',
    'speed/images per second',
)


class Histogram:
    """A histogram of any number of values in 0..1."""

    def __init__(self):
        self.low, self.high, self.count, self.sum, self.sum_squares = np.inf, -np.inf, 0, 0.0, 0.0
        self.bins = np.zeros(HISTOGRAM_BINS, int)

    def add(self, values) -> None:
        """Add an array of values."""
        values = np.asarray(values, np.float64)
        self.low, self.high = min(self.low, values.min()), max(self.high, values.max())
        self.count, self.sum = self.count + values.size, self.sum + values.sum()
        self.sum_squares += np.square(values).sum()
        self.bins += np.histogram(values, HISTOGRAM_BINS, (0, 1))[0]

    def message(self):
        """The tf.HistogramProto."""
        return tf.HistogramProto(
            min=self.low, max=self.high, num=self.count, sum=self.sum, sum_squares=self.sum_squares,
            bucket_limit=np.linspace(0, 1, HISTOGRAM_BINS + 1)[1:], bucket=self.bins,
        )  # fmt: skip


class Recorder(contextlib.ExitStack):
    """Records the steps of a run after `step`. A context manager, which closes its files."""

    def __init__(self, run: Run, step: int):
        super().__init__()
        self.run = run
        # tf.summary.FileWriter would write in a thread, which fails on a full disk without anyone noticing.
        events = run.directory / f'events.out.tfevents.{time.time():.0f}.from-step-{step}'
        self.losses, self.distances = Curve(), Curve()
        with open(run.directory / 'log.csv', newline='') as file:
            for logged, _, *losses, _, distance in itertools.islice(csv.reader(file), 1, None):
                self.add_to_curves(float(logged), map(float, losses), float(distance) if distance else None)
        self.log = self.enter_context(open(run.directory / 'log.csv', 'a', 1, newline=''))  # noqa: SIM115
        self.events = self.enter_context(tf.io.TFRecordWriter(os.fsencode(events)))
        self.bar = self.enter_context(progress(total=run.last_step, initial=step, unit=' steps'))
        self.start_means()
        self.add_event(file_version='brain.Event:2')
        # Hides what earlier processes wrote about later steps.
        self.add_event(step=step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))

    def start_means(self) -> None:
        """Start the means and histograms of the steps until the next grid. They are sums: grids may be far apart."""
        self.count, self.sums = 0, np.zeros(5)  # of both losses, D(x), D(G(z)), and seconds per image
        self.scores = {'scores/D(x)': Histogram(), 'scores/D(G(z))': Histogram()}  # of each image

    def add_to_curves(self, step: float, losses: Iterable[float], distance: float | None) -> None:
        """Add a step to the curves. losses: d_loss, g_loss, and the means of D(x) and D(G(z))."""
        self.losses.add(step, *losses)
        if distance is not None:
            self.distances.add(step, distance)

    def print(self, text: str) -> None:
        """Print above the progress bar."""
        self.bar.write(text)

    def add_event(self, **event) -> None:
        """Add an event for TensorBoard, a tf.Event of these fields."""
        self.events.write(tf.Event(wall_time=time.time(), **event).SerializeToString())
        self.events.flush()

    def show_start(self, graph, faces: np.ndarray) -> None:
        """Record the graph, and the faces of the untrained generator beside real ones."""
        grid, real = images_square_grid(faces), images_square_grid(self.run.real_samples)
        with files.replacing(self.run.directory / 'samples' / 'start.png') as temporary:
            side_by_side([grid, real]).save(temporary)
        self.add_event(graph_def=graph.as_graph_def().SerializeToString())
        self.add_event(step=0, summary=summary(images={'faces/generated': grid, 'faces/real': real}))
        if self.run.preview:
            self.print(f'Real faces:\n{preview(self.run.real_samples)}')

    def add_steps(self, step: int, losses, images_per_second: float, distance: float | None) -> None:
        """Log the steps up to `step`.

        losses: d_loss, g_loss, D(x) and D(G(z)) of each step. distance: that to held-out faces after the last, if
        measured.
        """
        d_loss, g_loss, *scores = losses
        count, rows = len(d_loss), []
        means = np.stack([d_loss, g_loss, *(values.mean(axis=(1, 2)) for values in scores)], axis=1).astype(np.float64)
        for number, row in enumerate(means.tolist(), step - count + 1):
            measured = distance if number == step else None
            values = ','.join(f'{value:.6g}' for value in (*row, images_per_second))
            rows.append(f'{number},{self.run.epoch(number)},{values},{"" if measured is None else f"{measured:.6g}"}\n')
            self.add_to_curves(number, row, measured)
        self.log.write(''.join(rows))
        self.count, self.sums = self.count + count, self.sums + (*means.sum(axis=0), count / images_per_second)
        for histogram, values in zip(self.scores.values(), scores, strict=True):
            histogram.add(values)
        self.bar.update(count)

    def add_distances(self, step: int, distances: dict[str, float]) -> None:
        """Record the distances to held-out faces, by the size of the level; see `metrics.images.swd`."""
        scalars = {f'quality/SWD x1000, {level}': distance for level, distance in distances.items()}
        self.add_event(step=step, summary=summary(scalars))

    def print_losses(self, step: int, faces: np.ndarray) -> float:
        """Print and record the means since the last grid, with `faces`; returns that of the discriminator's loss."""
        run, means = self.run, dict(zip(LOG_COLUMNS[2:-1], self.sums / self.count, strict=True))
        means['images_per_second'] = 1 / means['images_per_second']
        scalars = dict(zip(SCALARS, means.values(), strict=True))
        self.add_event(step=step, summary=summary(scalars, {'faces/generated': images_square_grid(faces)}, self.scores))
        self.start_means()
        plot_losses(self.losses, self.distances, run.directory / 'losses.png')
        self.print(
            f'Epoch {run.epoch(step)}/{run.epoch(run.last_step)}, step {step}: '
            'discriminator loss {d_loss:.4f}, generator loss {g_loss:.4f}, D(x) {d_real:.3f}, '
            'D(G(z)) {d_fake:.3f}, {images_per_second:.1f} images/s, '.format(**means)
            + f'samples {run.grid(step)}'
        )
        if run.preview:
            self.print(preview(faces))
        return means['d_loss']


def summary(scalars=None, images=None, histograms=None):
    """A tf.Summary of scalars, PIL images, and each `Histogram`, by name."""
    values = [tf.Summary.Value(tag=tag, simple_value=value) for tag, value in (scalars or {}).items()]
    for tag, image in (images or {}).items():
        file = io.BytesIO()
        image.save(file, 'PNG')
        encoded = {'encoded_image_string': file.getvalue(), 'colorspace': len(image.getbands())}
        picture = tf.Summary.Image(width=image.width, height=image.height, **encoded)
        values.append(tf.Summary.Value(tag=tag, image=picture))
    for tag, histogram in (histograms or {}).items():
        values.append(tf.Summary.Value(tag=tag, histo=histogram.message()))
    return tf.Summary(value=values)
