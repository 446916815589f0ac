"""Runs that an earlier version of the project wrote go on as they went then.

Each folder here holds a run of 12 steps on `smooth_faces`: its run.json in format 1, the log and the grids, and the
checkpoint of step 6. `oreilly` is that system with --evaluate-every; `sharma` has dropout, augmentation, noise on
images and noise on labels, and so everything that draws random numbers in a step.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from PIL import Image

from config.settings import ADDED
from rundir.run_json import FORMAT, read_run
from sampling.generator import draw_faces

RUNS = Path(__file__).parent


def smooth_faces(folder, count=44, side=28):
    """Make PNG files of `count` pictures, each a bilinear blend of four random colours in its corners."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    right = np.arange(side)
    left = right[::-1]
    weights = np.stack([np.outer(y, x) for y in (left, right) for x in (left, right)], axis=-1)
    for index in range(count):
        pixels = weights @ rng.integers(0, 256, (4, 3)) // (side - 1) ** 2
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{index:02}.png')


def values(run_dir):
    """The rows of log.csv without the speed and the distance."""
    with open(run_dir / 'log.csv', newline='') as file:
        return [[float(value) for value in row[:6]] for row in list(csv.reader(file))[1:]]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.fixture(params=['oreilly', 'sharma'])
def old_run(request, tmp_path) -> Path:
    return shutil.copytree(RUNS / request.param, tmp_path / 'run')


def test_an_old_run_goes_on_as_it_did(old_run, tmp_path):
    smooth_faces(tmp_path / 'faces')
    result = run_command('train.py', '--resume', '--run-dir', old_run, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == '', result.stderr
    before = values(RUNS / read_run(old_run)['settings']['system'])
    assert len(before) == 12
    # Six steps are too few for the rounding errors of another processor to grow.
    np.testing.assert_allclose(values(old_run), before, rtol=1e-3)
    grid = old_run / 'samples' / 'step-00000012.png'
    aside = old_run / 'abandoned' / grid.name
    assert np.abs(pixels(grid) - pixels(aside)).max() <= 2
    assert json.loads((old_run / 'run.json').read_text())['format'] == FORMAT


def test_a_generator_of_an_old_run_draws_the_same_faces(old_run):
    # A grid shows the first faces that the seed of the run gives.
    (faces,) = draw_faces(old_run, count=4, seed=0)
    grid = faces.reshape(2, 2, 28, 28, 3).swapaxes(1, 2).reshape(56, 56, 3)
    assert np.abs(grid - pixels(old_run / 'samples' / 'step-00000006.png')).max() <= 1


def test_an_old_run_is_read_with_the_settings_it_lacks(old_run):
    written = json.loads((old_run / 'run.json').read_text())
    assert 'format' not in written and not {'hold_out', 'local_batch_norm'} & set(written['settings'])
    assert read_run(old_run)['settings'] == ADDED | written['settings']
