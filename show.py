"""How does one see what is learned? Curves, pictures that move, faces in a terminal, TensorBoard's events."""

import gc
import io
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image

import cli
import helper
from rundir import LOG_COLUMNS, find_grids

GIF_SIDE = 480  # pixels, at most
GIF_PIXELS = 1 << 24  # of all frames: 23 MB if they were noise
PALETTE_FRAMES = 16  # that the colours are taken from
TRAINING_FRAME, LAST_FRAME = 150, 3000  # milliseconds
PREVIEW_SIDE = 20  # of a face, pixels
HISTOGRAM_BINS = 50
TRUE_COLOUR = ('truecolor', '24bit')  # what COLORTERM says where a terminal knows all colours
CUBE = np.array([0, 95, 135, 175, 215, 255])  # the levels of red, green and blue among a terminal's 256 colours


def plot_losses(log: Path, path: Path):
    """Draw the curves of log.csv: means over some steps of both losses, and of D(x) and D(G(z)); distances, if any."""
    from matplotlib.figure import Figure

    rows = np.atleast_2d(np.genfromtxt(log, delimiter=',', skip_header=1))
    evaluated = rows[np.isfinite(rows[:, -1])]
    window = max(1, len(rows) // 200)
    rows = rows[: len(rows) // window * window].reshape(-1, window, len(LOG_COLUMNS)).mean(axis=1)
    steps, _, d_loss, g_loss, d_real, d_fake, *_ = rows.T
    panels = 3 if len(evaluated) else 2
    figure = Figure(figsize=(5 * panels, 4), layout='tight')
    losses, scores, *distances = figure.subplots(1, panels)
    losses.plot(steps, d_loss, label='discriminator loss')
    losses.plot(steps, g_loss, label='generator loss')
    scores.plot(steps, d_real, label='D(x)')
    scores.plot(steps, d_fake, label='D(G(z))')
    for axes in distances:
        axes.plot(evaluated[:, 0], evaluated[:, -1], label='distance to held-out faces, SWD x1000')
    for axes in (losses, scores, *distances):
        axes.set_xlabel('step')
        axes.legend()
    with helper.replacing(path) as temporary:
        figure.savefig(temporary)
    del figure, losses, scores, distances, axes
    gc.collect()  # a figure is a cycle of megabytes, and Python by itself would look for such ones too seldom


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures in one, with a gap between them."""
    gap = max(4, left.width // 16)
    both = Image.new('RGB', (left.width + gap + right.width, max(left.height, right.height)), 'white')
    both.paste(left)
    both.paste(right, (left.width + gap, 0))
    return both


def gif_bounds(width, height) -> tuple[tuple[int, int], int]:
    """The size that frames of a GIF are scaled down to, and how many of them there may be."""
    scale = min(1, GIF_SIDE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return size, max(2, GIF_PIXELS // math.prod(size))


def thinned(items: list, count) -> list:
    """At most `count` of `items`, evenly spread, the first and the last among them."""
    chosen = np.linspace(0, len(items) - 1, min(len(items), count)).round().astype(int)
    return [items[number] for number in chosen]


def save_gif(frames, path: Path, duration, last=None):
    """Write a list of pictures of one size as a GIF that runs for ever, within `gif_bounds`.

    duration: of a frame, milliseconds; last: of the last. One palette for all and no dithering: colours do not
    flicker.
    """
    size, count = gif_bounds(*frames[0].size)
    frames = [frame.resize(size, Image.Resampling.BOX) for frame in thinned(frames, count)]
    some = np.concatenate([np.asarray(frame) for frame in thinned(frames, PALETTE_FRAMES)])
    palette = Image.fromarray(some).quantize()
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [duration] * len(others) + [last or duration]
    with helper.replacing(path) as temporary:
        first.save(temporary, 'GIF', save_all=True, append_images=others, duration=durations, loop=0, optimize=False)


def training_gif(run_dir: Path) -> Path:
    """Make training.gif of the grids of a run. Raises UserError where there is none."""
    grids = find_grids(run_dir)
    if not grids:
        raise cli.UserError(f'{run_dir} has no grids of samples: it is not the directory of a training run')
    with Image.open(grids[-1]) as newest:
        size, count = gif_bounds(*newest.size)
    frames = []
    for path in thinned(grids, count):
        with Image.open(path) as grid:
            frames.append(grid.convert('RGB').resize(size, Image.Resampling.BOX))
    save_gif(frames, run_dir / 'training.gif', TRAINING_FRAME, LAST_FRAME)
    return run_dir / 'training.gif'


def preview(faces: np.ndarray) -> str:
    """As many of `faces`, uint8 (N, H, W, 3), as the terminal has room for, in coloured half blocks."""
    columns, lines = shutil.get_terminal_size()
    side = min(PREVIEW_SIDE, columns)
    across, down = columns // side, max(1, (lines - 4) * 2 // side)
    small = [Image.fromarray(face).resize((side, side), Image.Resampling.BOX) for face in faces[: across * down]]
    grid = helper.images_square_grid(np.array(small), columns=min(across, len(small)))
    return half_blocks(np.asarray(grid), os.environ.get('COLORTERM') in TRUE_COLOUR)


def half_blocks(pixels: np.ndarray, true_colour) -> str:
    """A picture, uint8 (H, W, 3), as lines of upper half blocks: one character is two pixels, one above the other.

    true_colour: 24-bit colours, otherwise the nearest of the 6x6x6 cube that is among the usual 256.
    """

    def colour(pixel):
        if true_colour:
            return '2;{};{};{}'.format(*pixel)
        red, green, blue = np.abs(CUBE - pixel[:, None].astype(int)).argmin(axis=1)
        return f'5;{16 + 36 * red + 6 * green + blue}'

    rows = zip(pixels[::2], pixels[1::2], strict=True)
    return '\n'.join(
        ''.join(f'\x1b[38;{colour(above)};48;{colour(below)}m▀' for above, below in zip(*row, strict=True)) + '\x1b[0m'
        for row in rows
    )


def add_event(events, **what):
    """Add an event to a file of TensorBoard. `tf.summary.FileWriter` would have a thread fail on a full disk."""
    from runtime import tf

    events.write(tf.Event(wall_time=time.time(), **what).SerializeToString())
    events.flush()


def summary(scalars=None, images=None, histograms=None):
    """What TensorBoard shows of a step, by name: numbers, pictures (PIL), and values in 0..1 as histograms."""
    from runtime import tf

    values = [tf.Summary.Value(tag=tag, simple_value=value) for tag, value in (scalars or {}).items()]
    for tag, image in (images or {}).items():
        file = io.BytesIO()
        image.save(file, 'PNG')
        picture = tf.Summary.Image(
            width=image.width, height=image.height, colorspace=3, encoded_image_string=file.getvalue()
        )
        values.append(tf.Summary.Value(tag=tag, image=picture))
    for tag, numbers in (histograms or {}).items():
        numbers = np.asarray(numbers, np.float64)
        bucket, edges = np.histogram(numbers, HISTOGRAM_BINS, (0, 1))
        histogram = tf.HistogramProto(
            min=numbers.min(), max=numbers.max(), num=numbers.size, sum=numbers.sum(),
            sum_squares=np.square(numbers).sum(), bucket_limit=edges[1:], bucket=bucket,
        )  # fmt: skip
        values.append(tf.Summary.Value(tag=tag, histo=histogram))
    return tf.Summary(value=values)
