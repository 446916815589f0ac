"""The record of a run: log.csv, TensorBoard's events, the progress bar, and a line at every grid."""

import contextlib
import csv
import io
import statistics
import time

import numpy as np

from common import files
from common.cli import progress
from graph.session import tf
from helper import images_square_grid
from training.pictures import plot_losses, preview, side_by_side
from training.run import LOG_COLUMNS, Run

HISTOGRAM_BINS = 50


class Recorder(contextlib.ExitStack):
    """Records the steps of a run after `step`. A context manager, which closes its files."""

    def __init__(self, run: Run, step: int):
        super().__init__()
        self.run = run
        # tf.summary.FileWriter would write in a thread, which fails on a full disk without anyone noticing.
        events = run.directory / f'events.out.tfevents.{time.time():.0f}.from-step-{step}'
        self.log = self.enter_context(open(run.directory / 'log.csv', 'a', 1, newline=''))  # noqa: SIM115
        self.events = self.enter_context(tf.io.TFRecordWriter(str(events)))
        self.bar = self.enter_context(progress(total=run.last_step, initial=step, unit=' steps'))
        self.rows: list[tuple[float, ...]] = []  # of log.csv, since the last grid
        self.scores: list[tuple[np.ndarray, np.ndarray]] = []  # D(x) and D(G(z)) of each image, since then
        self.add_event(file_version='brain.Event:2')
        # Hides what earlier processes wrote about later steps.
        self.add_event(step=step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))

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
            side_by_side(grid, real).save(temporary)
        self.add_event(graph_def=graph.as_graph_def().SerializeToString())
        self.add_event(step=0, summary=summary(images={'faces': grid, 'real faces': real}))
        if self.run.preview:
            self.print(f'Real faces:\n{preview(self.run.real_samples)}')

    def add_step(self, step: int, losses, images_per_second: float, distance: float | None) -> None:
        """Log a step. losses: d_loss, g_loss, D(x) and D(G(z)); distance: that to held-out faces, if measured."""
        d_loss, g_loss, d_real, d_fake = losses
        self.rows.append((d_loss, g_loss, d_real.mean(), d_fake.mean(), images_per_second))
        self.scores.append((d_real, d_fake))
        row = [step, self.run.epoch(step), *(f'{value:.6g}' for value in self.rows[-1])]
        row.append('' if distance is None else f'{distance:.6g}')
        csv.writer(self.log, lineterminator='\n').writerow(row)
        self.bar.update()

    def add_distances(self, step: int, distances: dict[int, float]) -> None:
        """Record the distances to held-out faces, by the side of the level; see `sampling.metrics.swd`."""
        scalars = {f'SWD x1000, {side}x{side}': distance for side, distance in distances.items()}
        self.add_event(step=step, summary=summary(scalars))

    def print_losses(self, step: int, faces: np.ndarray) -> float:
        """Print and record the means since the last grid, with `faces`; returns that of the discriminator's loss."""
        run, means = self.run, dict(zip(LOG_COLUMNS[2:-1], np.mean(self.rows, axis=0), strict=True))
        means['images_per_second'] = statistics.harmonic_mean(row[-1] for row in self.rows)
        histograms = dict(zip(('D(x)', 'D(G(z))'), np.swapaxes(self.scores, 0, 1), strict=True))
        self.add_event(step=step, summary=summary(means, {'faces': images_square_grid(faces)}, histograms))
        self.rows.clear()
        self.scores.clear()
        plot_losses(run.directory / 'log.csv', run.directory / 'losses.png')
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
    """A tf.Summary of scalars, PIL images, and histograms of values in 0..1, each by name."""
    values = [tf.Summary.Value(tag=tag, simple_value=value) for tag, value in (scalars or {}).items()]
    for tag, image in (images or {}).items():
        file = io.BytesIO()
        image.save(file, 'PNG')
        encoded = {'encoded_image_string': file.getvalue(), 'colorspace': 3}
        picture = tf.Summary.Image(width=image.width, height=image.height, **encoded)
        values.append(tf.Summary.Value(tag=tag, image=picture))
    for tag, samples in (histograms or {}).items():
        samples = np.asarray(samples, np.float64)
        bucket, edges = np.histogram(samples, HISTOGRAM_BINS, (0, 1))
        histogram = tf.HistogramProto(
            min=samples.min(), max=samples.max(), num=samples.size, sum=samples.sum(),
            sum_squares=np.square(samples).sum(), bucket_limit=edges[1:], bucket=bucket,
        )  # fmt: skip
        values.append(tf.Summary.Value(tag=tag, histo=histogram))
    return tf.Summary(value=values)
