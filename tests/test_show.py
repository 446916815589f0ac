import io
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, run_command
from PIL import Image

import rundir
import show
from systems import SYSTEMS

RNG = np.random.default_rng(0)


def noise(side):
    return Image.fromarray(RNG.integers(0, 256, (side, side, 3), dtype=np.uint8))


# --- GIFs


def test_a_gif_runs_for_ever_and_rests_on_its_last_frame(tmp_path):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    show.save_gif([Image.new('RGB', (10, 6), colour) for colour in colours], tmp_path / 'x.gif', 100, 900)
    with Image.open(tmp_path / 'x.gif') as gif:
        assert gif.n_frames == 3 and gif.size == (10, 6) and gif.info['loop'] == 0
        for number, colour in enumerate(colours):
            gif.seek(number)
            assert gif.info['duration'] == (100, 100, 900)[number]
            assert (np.asarray(gif.convert('RGB')) == colour).all()


def test_what_does_not_change_does_not_flicker(tmp_path):
    still, frames = noise(16), []
    for _ in range(8):
        frames.append(Image.new('RGB', (32, 16)))
        frames[-1].paste(still)
        frames[-1].paste(noise(16), (16, 0))
    show.save_gif(frames, tmp_path / 'x.gif', 100)
    seen = []
    with Image.open(tmp_path / 'x.gif') as gif:
        for number in range(8):
            gif.seek(number)
            seen.append(np.asarray(gif.convert('RGB'))[:, :16])
    assert all((frame == seen[0]).all() for frame in seen)
    assert np.abs(seen[0].astype(int) - np.asarray(still)).mean() < 30  # 256 colours for noise


def test_large_and_many_frames_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(show, 'GIF_SIDE', 20)
    monkeypatch.setattr(show, 'GIF_PIXELS', 20 * 10 * 5)
    frames = [Image.new('RGB', (80, 40), (number, 0, 0)) for number in range(0, 120, 10)]
    show.save_gif(frames, tmp_path / 'x.gif', 100)
    with Image.open(tmp_path / 'x.gif') as gif:
        assert gif.size == (20, 10) and gif.n_frames == 5
        assert np.asarray(gif.convert('RGB'))[0, 0, 0] == 0
        gif.seek(4)
        assert np.asarray(gif.convert('RGB'))[0, 0, 0] == 110


def test_the_training_gif_has_the_grids_of_the_run_in_order(trained, tmp_path):
    before = (trained / 'training.gif').read_bytes()
    result = run_command('train.py', '--gif', '--run-dir', trained, cwd=tmp_path)
    assert result.returncode == 0 and str(trained / 'training.gif') in result.stdout and result.stderr == ''
    assert (trained / 'training.gif').read_bytes() == before
    grids = [np.asarray(Image.open(path)).astype(int) for path in rundir.find_grids(trained)]
    assert len(grids) == 4
    with Image.open(trained / 'training.gif') as gif:
        assert gif.n_frames == len(grids)
        for number, grid in enumerate(grids):
            gif.seek(number)
            assert np.abs(np.asarray(gif.convert('RGB')) - grid).mean() < 15


def test_without_grids_there_is_no_gif_but_one_line(tmp_path):
    result = run_command('train.py', '--gif', '--run-dir', tmp_path, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.count('\n') == 1 and str(tmp_path) in result.stderr
    assert list(tmp_path.iterdir()) == []


# --- the terminal


def test_half_blocks_are_two_pixels_each():
    pixels = np.array([[[255, 0, 0], [1, 2, 3]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    assert show.half_blocks(pixels, true_colour=True) == (
        '\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[38;2;1;2;3;48;2;255;255;255m▀\x1b[0m'
    )
    # of 256 colours 16 + 36 red + 6 green + blue, each of 0..5
    assert show.half_blocks(pixels, true_colour=False) == '\x1b[38;5;196;48;5;21m▀\x1b[38;5;16;48;5;231m▀\x1b[0m'
    grey = np.full((2, 1, 3), 130, np.uint8)  # between the levels 95 and 135
    assert show.half_blocks(grey, true_colour=False) == '\x1b[38;5;102;48;5;102m▀\x1b[0m'


@pytest.mark.parametrize('columns, lines', [(80, 24), (200, 50), (10, 5)])
def test_a_preview_fits_the_terminal(monkeypatch, columns, lines):
    monkeypatch.setenv('COLUMNS', str(columns))
    monkeypatch.setenv('LINES', str(lines))
    monkeypatch.setenv('COLORTERM', 'truecolor')
    faces = RNG.integers(0, 256, (36, 64, 64, 3), dtype=np.uint8)
    rows = show.preview(faces).splitlines()
    widths = {row.count('▀') for row in rows}
    assert len(widths) == 1 and max(widths) <= columns and len(rows) <= max(lines, 10)
    if columns >= 80:
        assert max(widths) >= 80 and '38;2;' in rows[0]


def in_terminal(command, cwd, **environment):
    """What a command prints on a terminal, and its exit status."""
    ours, theirs = pty.openpty()
    environment = os.environ | {'TERM': 'xterm', 'COLUMNS': '80', 'LINES': '30'} | environment
    with subprocess.Popen(command, cwd=cwd, stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:
        os.close(theirs)
        printed = b''
        while True:
            try:
                printed += os.read(ours, 1 << 16)
            except OSError:  # its end
                break
    os.close(ours)
    return printed.decode(), process.returncode


@pytest.mark.parametrize('colours, code', [('truecolor', '38;2;'), ('', '38;5;')])
def test_faces_are_shown_on_a_terminal_and_nowhere_else(tmp_path, pictures, colours, code):
    arguments = ['--data', pictures, '--width', 0.0625, '--batch-size', 8, '--steps', 2, '--preview', '--run-dir']
    command = [sys.executable, str(ROOT / 'train.py'), *map(str, arguments)]
    printed, status = in_terminal([*command, 'first'], tmp_path, COLORTERM=colours)
    assert status == 0 and 'Real faces:' in printed and 'step 2: ' in printed
    blocks = [line for line in printed.splitlines() if '▀' in line]
    assert len(blocks) == 2 * 20 and all(code in line for line in blocks)  # twice two rows of 20 pixels
    if not colours:
        result = run_command('train.py', *arguments, 'second', cwd=tmp_path)
        assert result.returncode == 0 and '▀' not in result.stdout and '\x1b' not in result.stdout + result.stderr


# --- TensorBoard


def test_a_summary_holds_numbers_pictures_and_histograms():
    picture = noise(8)
    values = show.summary({'loss': 0.5}, {'faces': picture}, {'D(x)': [[0.01], [0.99], [0.99], [1.0]]}).value
    number, image, histogram = values
    assert (number.tag, number.simple_value) == ('loss', 0.5)
    shown = Image.open(io.BytesIO(image.image.encoded_image_string))
    assert image.tag == 'faces' and (np.asarray(shown) == np.asarray(picture)).all()
    assert (image.image.width, image.image.height, image.image.colorspace) == (8, 8, 3)
    histogram = histogram.histo
    assert (histogram.num, histogram.min, histogram.max) == (4, 0.01, 1.0)
    np.testing.assert_allclose([histogram.sum, histogram.sum_squares], [2.99, 0.0001 + 2 * 0.9801 + 1])
    assert len(histogram.bucket) == len(histogram.bucket_limit) == 50 and histogram.bucket_limit[0] == 0.02
    assert histogram.bucket[0] == 1 and histogram.bucket[49] == 3 and sum(histogram.bucket) == 4


def test_tensorboard_gets_the_graph_the_real_faces_and_each_grid(trained):
    import dcgan

    (path,) = trained.glob('events.out.tfevents.*')
    events = list(dcgan.tf.train.summary_iterator(str(path)))
    graphs = [event.graph_def for event in events if event.graph_def]
    assert len(graphs) == 1
    names = {node.name for node in dcgan.tf.GraphDef.FromString(graphs[0]).node}
    assert {'input_real', 'input_z', 'generator/layer1/dense/kernel'} <= names
    seen = {}
    for event in events:
        for value in event.summary.value:
            seen.setdefault(value.tag, []).append((event.step, value))
    assert [step for step, _ in seen['faces']] == [0, 4, 8, 10] and [step for step, _ in seen['real faces']] == [0]
    for step, value in seen['faces']:
        drawn = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
        assert (drawn == np.asarray(Image.open(trained / 'samples' / f'step-{step:08}.png'))).all()
    assert [(step, value.histo.num) for step, value in seen['D(x)']] == [(4, 32), (8, 32), (10, 16)]  # batches of 8
    assert [step for step, _ in seen['D(G(z))']] == [4, 8, 10]


def test_a_run_starts_with_drawn_and_real_faces_side_by_side(trained):
    start = np.asarray(Image.open(trained / 'samples' / 'start.png'))
    drawn = np.asarray(Image.open(trained / 'samples' / 'step-00000000.png'))
    assert (start[: drawn.shape[0], : drawn.shape[1]] == drawn).all()
    real = start[: 6 * 28, -7 * 28 :]  # the 40 pictures there are, in a square of 7
    assert real[: 5 * 28].std() > 20 and (real[-28:, 5 * 28 :] == 0).all()


# --- what leaves at once


def test_all_systems_are_listed_side_by_side(tmp_path):
    result = run_command('train.py', '--list-systems', cwd=tmp_path)
    head, *rows = result.stdout.splitlines()
    assert result.returncode == 0 and result.stderr == '' and head.split() == list(SYSTEMS)
    listed = {re.split('  +', row)[0]: re.split('  +', row)[1:] for row in rows if not row.startswith(' ')}
    assert listed['latent'] == ['uniform', 'uniform', 'uniform', 'normal', 'uniform', 'uniform']
    assert listed['learning rate'] == ['0.0002', '0.0002', '0.0001', '0.0002', '0.0002', '0.0004']
    assert listed['generator 1'][0].startswith('dense 2x2x512, BN') and 'discriminator 6' in listed
    assert list(tmp_path.iterdir()) == []


def test_devices_are_said_and_nothing_is_trained(tmp_path):
    result = run_command('train.py', '--devices', cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == '' and result.stdout.count('\n') == 1
    assert result.stdout.startswith('Devices: CPU:0') and ('No GPU' in result.stdout or 'on the GPU' in result.stdout)
    assert list(tmp_path.iterdir()) == []
