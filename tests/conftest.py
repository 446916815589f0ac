"""What several test files need: small pictures, and the commands as a user runs them."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def encode(pixels, image_format='PNG') -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, image_format)
    return file.getvalue()


def run_command(script, *args, cwd, **kwargs):
    """Run train.py or generate.py in `cwd`, away from the project, as a user does."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, **kwargs)


@pytest.fixture(scope='session')
def pictures(tmp_path_factory) -> Path:
    """A zip archive of 40 aligned images, 178x218, of colours that differ."""
    path = tmp_path_factory.mktemp('pictures') / 'pictures.zip'
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, 'w') as archive:
        for number in range(40):
            small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
            pixels = np.asarray(small.resize((178, 218), Image.Resampling.BICUBIC))
            archive.writestr(f'img_align_celeba/{number:06}.jpg', encode(pixels, 'JPEG'))
    return path


@pytest.fixture(scope='session')
def trained(tmp_path_factory, pictures) -> Path:
    """The directory of a short finished run."""
    folder = tmp_path_factory.mktemp('trained')
    result = run_command(
        'train.py', '--data', pictures, '--run-dir', 'run', '--batch-size', 8, '--epochs', 2,
        '--sample-every', 4, '--checkpoint-every', 3, '--keep-every', 1, cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / 'run'


def celeb_a(variable) -> Path:
    """The path in an environment variable that names real faces; skips the test where it is not set."""
    if variable not in os.environ:
        pytest.skip(f'{variable} names no real faces')
    return Path(os.environ[variable])
