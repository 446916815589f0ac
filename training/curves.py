"""The pictures of a run: its curves, losses.png, and the animation of its grids, training.gif."""

import gc
from pathlib import Path

import numpy as np
from PIL import Image

from common import cli, files
from common.lazy import LazyModule, load_with_matplotlib
from rundir.checkpoints import find_grids
from sampling.pictures import evenly_spaced, gif_bounds, save_gif

figure = LazyModule('matplotlib.figure', load_with_matplotlib)

MAX_POINTS = 200  # points per curve after thinning
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 150, 3000


class Curve:
    """A curve of any length in MAX_POINTS to 2 * MAX_POINTS points (x, y, ...), each the mean of a window of steps."""

    def __init__(self):
        self.points: list[np.ndarray] = []
        self.window = 1  # points in a mean
        self.sum, self.count = np.zeros(1), 0  # of the next window

    def add(self, *point: float) -> None:
        """Add a point."""
        self.sum, self.count = self.sum + np.array(point, np.float64), self.count + 1
        if self.count == self.window:
            self.points.append(self.sum / self.count)
            self.sum, self.count = np.zeros(1), 0
        if len(self.points) == 2 * MAX_POINTS:
            self.points = list(np.mean([self.points[::2], self.points[1::2]], axis=0))
            self.window *= 2


def plot_losses(losses: Curve, distances: Curve, path: Path) -> None:
    """Plot both losses, D(x) and D(G(z)), and the distance to held-out faces if it was measured, by step.

    losses: of points (step, d_loss, g_loss, d_real, d_fake); distances: (step, distance).
    """
    steps, d_loss, g_loss, d_real, d_fake = np.transpose(losses.points)
    curves = [
        [(steps, d_loss, 'discriminator loss'), (steps, g_loss, 'generator loss')],
        [(steps, d_real, 'D(x)'), (steps, d_fake, 'D(G(z))')],
    ]
    if distances.points:
        curves.append([(*np.transpose(distances.points), 'distance to held-out faces, SWD x1000')])
    plot = figure.Figure(figsize=(5 * len(curves), 4), layout='tight')
    for axes, panel in zip(plot.subplots(1, len(curves)), curves, strict=True):
        for x, y, label in panel:
            axes.plot(x, y, label=label)
        axes.set_xlabel('step')
        axes.legend()
    with files.replacing(path) as temporary:
        plot.savefig(temporary)
    del plot, axes
    gc.collect()  # a figure is a reference cycle of megabytes, and Python would collect it too late


def training_gif(run_dir: Path) -> Path:
    """Make training.gif from the grids of a run. Raises UserError if there are none."""
    grids = find_grids(run_dir)
    if not grids:
        raise cli.UserError(f'{run_dir} has no grids of samples: it is not the directory of a training run')
    with Image.open(grids[-1]) as newest:
        size, count = gif_bounds(*newest.size)
    frames = []
    for path in evenly_spaced(grids, count):
        with Image.open(path) as grid:
            frames.append(grid.convert('RGB').resize(size, Image.Resampling.BOX))
    save_gif(frames, run_dir / 'training.gif', FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS)
    return run_dir / 'training.gif'
