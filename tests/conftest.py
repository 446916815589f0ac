"""What several test files need: small pictures, and the commands as a user runs them."""

import csv
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from settings import choose_settings, chosen_system, parse_arguments

ROOT = Path(__file__).parent.parent
# For runs that claim nothing about the width: a checkpoint of the whole one has 80 MB, and this one 2.
NARROW = '--width', '0.125'


def encode(pixels, image_format='PNG') -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, image_format)
    return file.getvalue()


def run_command(script, *args, cwd, **kwargs):
    """Run train.py or generate.py in `cwd`, away from the project, as a user does."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, **kwargs)


def assert_one_line(result, *parts):
    """A command ended with one line on stderr, with `parts` in it, and status 2."""
    assert result.returncode == 2 and result.stderr.count('\n') == 1, result.stderr
    assert all(part in result.stderr for part in parts), result.stderr


def log(run_dir) -> list[list[str]]:
    """The rows of log.csv without the speed, which no two runs share."""
    with open(run_dir / 'log.csv', newline='') as file:
        return [row[:6] + row[7:] for row in csv.reader(file)]


def chosen(flags):
    """The settings that flags, separated by spaces, give, and their system."""
    settings = choose_settings(parse_arguments(flags.split()))
    return settings, chosen_system(settings)


@pytest.fixture(scope='session')
def pictures(tmp_path_factory) -> Path:
    """A zip archive of 44 aligned images, 178x218, of colours that differ: 40 to train on."""
    path = tmp_path_factory.mktemp('pictures') / 'pictures.zip'
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, 'w') as archive:
        for number in range(44):
            small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
            pixels = np.asarray(small.resize((178, 218), Image.Resampling.BICUBIC))
            archive.writestr(f'img_align_celeba/{number:06}.jpg', encode(pixels, 'JPEG'))
    return path


@pytest.fixture(scope='session')
def trained(tmp_path_factory, pictures) -> Path:
    """The directory of a short finished run, narrow."""
    folder = tmp_path_factory.mktemp('trained')
    result = run_command(
        'train.py', *NARROW, '--data', pictures, '--run-dir', 'run', '--batch-size', 8, '--epochs', 2,
        '--sample-every', 4, '--checkpoint-every', 3, '--keep-every', 1, cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / 'run'


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """The directory of a finished run, to go on with or to be damaged."""
    return shutil.copytree(trained, tmp_path / 'run')


def celeb_a(variable) -> Path:
    """The path in an environment variable that names real faces; skips the test where it is not set."""
    if variable not in os.environ:
        pytest.skip(f'{variable} names no real faces')
    return Path(os.environ[variable])
