"""What several test files share: small pictures, the commands as a user runs them, short runs."""

import csv
import io
import os
import shutil
import signal
import zipfile
from dataclasses import replace
from pathlib import Path

import forkserver
import numpy as np
import pytest
from PIL import Image

from config.settings import choose_settings, parse_arguments, system_of
from graph.session import open_session, tf
from helper import Dataset
from systems import SYSTEMS, Layer
from training.run import Run

ROOT = Path(__file__).parent.parent
# A shell starts what runs in the background, and nohup its command, with some signals ignored; processes inherit that.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
# For runs whose width does not matter: at full width a checkpoint has 80 MB, at this one 2 MB.
NARROW = '--width', '0.125'


def encode(pixels, image_format='PNG') -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, image_format)
    return file.getvalue()


def run_command(script, *args, cwd, **options):
    """Run a command of the project in `cwd`, as a user does; `options` as those of `forkserver.run`."""
    return forkserver.run([ROOT / script, *args], cwd=cwd, **options)


def assert_one_line(result, *parts):
    """Assert that a command ended with status 2 and one line on stderr that contains `parts`."""
    assert result.returncode == 2 and result.stderr.count('\n') == 1, result.stderr
    assert all(part in result.stderr for part in parts), result.stderr


def log(run_dir) -> list[list[str]]:
    """The rows of log.csv without the speed, which differs from run to run."""
    with open(run_dir / 'log.csv', newline='') as file:
        return [row[:6] + row[7:] for row in csv.reader(file)]


def read_log(run_dir) -> list[dict[str, str]]:
    """The rows of log.csv, by column."""
    with open(run_dir / 'log.csv', newline='') as file:
        return list(csv.DictReader(file))


def checkpoint_names(run_dir) -> list[str]:
    """The names of the checkpoints of a run, sorted."""
    return sorted(path.stem for path in (run_dir / 'checkpoints').glob('*.index'))


def read_events(run_dir) -> list:
    """The events that TensorBoard reads of a run, in the order of their files."""
    paths = sorted(run_dir.glob('events.out.tfevents.*'))
    return [event for path in paths for event in tf.train.summary_iterator(str(path))]


def cut(file):
    """Damage a file: halve it."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bit(file):
    """Damage a file: change one bit in its middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def chosen(flags):
    """The settings given by flags, separated by spaces, and their system."""
    settings = choose_settings(parse_arguments(flags.split()))
    return settings, system_of(settings)


def new_run(flags, faces, directory=Path(os.devnull)) -> Run:
    """A run with the settings given by flags, on faces uint8 (N, H, W, 3)."""
    return Run(chosen(flags)[0], Dataset(faces), directory)


@pytest.fixture
def session():
    """A session of a new graph with seed 0, the default graph and session meanwhile."""
    with tf.Graph().as_default(), open_session() as session:
        tf.set_random_seed(0)
        yield session


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def few_layers(monkeypatch):
    """Gives the systems `oreilly` and `sharma` small networks, whose graphs are built and compiled quickly."""
    networks = {
        'generator': (
            Layer('dense', (7, 7, 4), batch_norm=True, dropout=True),
            Layer('conv2d_transpose', 4, stride=2, batch_norm=True, dropout=True),
            Layer('conv2d_transpose', 3, stride=2, activation='tanh'),
        ),
        'discriminator': (
            Layer('conv2d', 4, stride=2),
            Layer('conv2d', 4, stride=2, batch_norm=True),
            Layer('dense', (1,), activation=None),
        ),
    }
    for name in ('oreilly', 'sharma'):
        monkeypatch.setitem(SYSTEMS, name, replace(SYSTEMS[name], **networks))


@pytest.fixture(scope='session')
def pictures(tmp_path_factory) -> Path:
    """A zip archive of 44 aligned images of 178x218 in different colours: 40 to train on."""
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
    """The directory of a short, narrow, finished run."""
    folder = tmp_path_factory.mktemp('trained')
    result = run_command(
        'train.py', *NARROW, '--data', pictures, '--run-dir', 'run', '--batch-size', 8, '--epochs', 2,
        '--hold-out', 'images', '--sample-every', 4, '--checkpoint-every', 3, '--keep-every', 1, cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / 'run'


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """A copy of a finished run, to resume or to damage."""
    return shutil.copytree(trained, tmp_path / 'run')


def celeb_a(variable) -> Path:
    """The path of real faces in an environment variable; skips the test if it is not set."""
    if variable not in os.environ:
        pytest.skip(f'{variable} is not set: no real faces')
    return Path(os.environ[variable])
