import os
import pty
import subprocess

import forkserver
import numpy as np
import pytest
from conftest import ROOT, run_command
from PIL import Image

from common import cli
from rundir.checkpoints import find_grids
from training.curves import MAX_POINTS, Curve, half_blocks, plot_losses, preview, training_gif

RNG = np.random.default_rng(0)


# --- curves


def curve(points):
    curve = Curve()
    for point in points:
        curve.add(*point)
    return curve


@pytest.mark.parametrize('count', [1, 399, 400, 401, 1000, 12345])
def test_a_curve_of_any_length_has_few_points_each_a_mean_over_as_many(count):
    points = RNG.random((count, 3))
    thinned = curve(points)
    window = thinned.window
    assert len(thinned.points) == count // window < 2 * MAX_POINTS
    assert window == 1 if count < 2 * MAX_POINTS else len(thinned.points) >= MAX_POINTS
    means = points[: count // window * window].reshape(-1, window, 3).mean(axis=1)
    np.testing.assert_allclose(thinned.points, means)


@pytest.mark.parametrize(
    ('steps', 'evaluated', 'width'), [(1, [], 1000), (1, [1], 1500), (9, [], 1000), (999, [500], 1500)]
)
def test_distances_have_a_panel_of_their_own_beside_the_losses_and_scores(tmp_path, steps, evaluated, width):
    losses = curve((step, 1.3, 0.7, 0.6, 0.4) for step in range(1, steps + 1))
    plot_losses(losses, curve((step, 2.5) for step in evaluated), tmp_path / 'losses.png')
    with Image.open(tmp_path / 'losses.png') as plot:
        assert plot.size == (width, 400) and np.asarray(plot.convert('L')).std() > 1


# --- the GIF of the training


def test_the_training_gif_has_the_grids_of_the_run_in_order(trained, tmp_path):
    before = (trained / 'training.gif').read_bytes()
    result = run_command('train.py', '--gif', '--run-dir', trained, cwd=tmp_path)
    assert result.returncode == 0 and str(trained / 'training.gif') in result.stdout and result.stderr == ''
    assert (trained / 'training.gif').read_bytes() == before
    grids = [np.asarray(Image.open(path)).astype(int) for path in find_grids(trained)]
    assert len(grids) == 4
    with Image.open(trained / 'training.gif') as gif:
        assert gif.n_frames == len(grids)
        for index, grid in enumerate(grids):
            gif.seek(index)
            assert np.abs(np.asarray(gif.convert('RGB')) - grid).mean() < 15


def test_without_grids_there_is_an_error_and_no_gif(tmp_path):
    with pytest.raises(cli.UserError, match=f'{tmp_path} has no grids'):
        training_gif(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- faces in the terminal


def test_a_half_block_is_two_pixels():
    pixels = np.array([[[255, 0, 0], [1, 2, 3]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    assert half_blocks(pixels, true_colour=True) == (
        '\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[38;2;1;2;3;48;2;255;255;255m▀\x1b[0m'
    )
    # Of 256 colours, 16 + 36 red + 6 green + blue, each of 0..5.
    assert half_blocks(pixels, true_colour=False) == '\x1b[38;5;196;48;5;21m▀\x1b[38;5;16;48;5;231m▀\x1b[0m'
    grey = np.full((2, 1, 3), 130, np.uint8)  # between the levels 95 and 135
    assert half_blocks(grey, true_colour=False) == '\x1b[38;5;102;48;5;102m▀\x1b[0m'


@pytest.mark.parametrize(('columns', 'lines'), [(80, 24), (200, 50), (10, 5)])
def test_a_preview_fits_the_terminal(monkeypatch, columns, lines):
    monkeypatch.setenv('COLUMNS', str(columns))
    monkeypatch.setenv('LINES', str(lines))
    faces = RNG.integers(0, 256, (36, 64, 64, 3), dtype=np.uint8)
    rows = preview(faces).splitlines()
    widths = {row.count('▀') for row in rows}
    assert len(widths) == 1 and max(widths) <= columns and len(rows) <= max(lines, 10)
    if columns >= 80:
        assert max(widths) >= 80


def test_a_preview_keeps_the_proportions_of_grey_faces(monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    monkeypatch.setenv('LINES', '24')
    rows = preview(RNG.integers(0, 256, (1, 32, 64, 1), dtype=np.uint8)).splitlines()
    assert len(rows) == 5 and {row.count('▀') for row in rows} == {20}


@pytest.mark.parametrize(
    ('variable', 'code'), [('truecolor', '38;2;'), ('24bit', '38;2;'), ('', '38;5;'), (None, '38;5;')]
)
def test_a_preview_has_the_colours_that_the_terminal_knows(monkeypatch, variable, code):
    if variable is None:
        monkeypatch.delenv('COLORTERM', raising=False)
    else:
        monkeypatch.setenv('COLORTERM', variable)
    rows = preview(RNG.integers(0, 256, (4, 28, 28, 3), dtype=np.uint8)).splitlines()
    assert rows and all(code in row for row in rows)


def in_terminal(command, cwd, **environment):
    """What a command prints in a terminal, and its exit status."""
    ours, theirs = pty.openpty()
    environment = os.environ | {'TERM': 'xterm', 'COLUMNS': '80', 'LINES': '30'} | environment
    with forkserver.start(command, cwd=cwd, stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:
        os.close(theirs)
        printed = b''
        while True:
            try:
                printed += os.read(ours, 1 << 16)
            except OSError:  # the end
                break
    os.close(ours)
    return printed.decode(), process.returncode


def test_faces_are_shown_in_a_terminal_and_nowhere_else(tmp_path, pictures):
    arguments = ['--data', pictures, '--width', 0.0625, '--batch-size', 8, '--steps', 2, '--preview', '--run-dir']
    command = [ROOT / 'train.py', *arguments, 'first']
    printed, status = in_terminal(command, tmp_path, COLORTERM='truecolor')
    assert status == 0 and 'Real faces:' in printed and 'step 2: ' in printed
    blocks = [line for line in printed.splitlines() if '▀' in line]
    assert len(blocks) == 2 * 20 and all('38;2;' in line for line in blocks)  # twice two rows of 20 pixels
    result = run_command('train.py', *arguments, 'second', cwd=tmp_path)
    assert result.returncode == 0 and '▀' not in result.stdout and '\x1b' not in result.stdout + result.stderr
