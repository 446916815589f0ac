"""The commands on pictures like those of MNIST: grey, in a folder for each digit; here not even square."""

import numpy as np
from conftest import NARROW, read_log, run_command
from PIL import Image


def test_grey_pictures_that_are_not_square_are_trained_on_drawn_and_judged(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        folder = tmp_path / 'digits' / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray(rng.integers(0, 256, (4, 3), np.uint8)).resize((30, 40), Image.Resampling.BICUBIC)
        pixels.save(folder / f'{number}.png')
    result = run_command(
        'train.py', *NARROW, '--data', 'digits', '--channels', 1, '--image-size', '48x32', '--batch-size', 8,
        '--steps', 2, '--sample-every', 1, '--evaluate-every', 1, '--run-dir', 'run', cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0 and result.stderr == '', result.stderr
    assert 'Note: the images are upscaled to 48x32; after cropping, the first is only 40x27\n' in result.stdout
    assert len([row for row in read_log(tmp_path / 'run') if row['swd']]) == 2
    with Image.open(tmp_path / 'run' / 'samples' / 'step-00000002.png') as grid:
        assert grid.mode == 'L' and grid.size == (8 * 32, 8 * 48)
    result = run_command('generate.py', '--checkpoint', 'run', '--count', 3, '--format', 'npz', cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == '', result.stderr
    assert np.load(tmp_path / 'faces' / 'faces.npz')['arr_0'].shape == (3, 48, 32, 1)
    result = run_command('generate.py', '--checkpoint', 'run', '--interpolate', 2, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == '', result.stderr
    with Image.open(tmp_path / 'faces-2' / 'walk.gif') as walk:
        assert walk.size == (32, 48)
    result = run_command('evaluate.py', 'run', '--data', 'digits', cwd=tmp_path)
    assert result.returncode == 0 and result.stderr.startswith('Warning: only 4 of the 40 faces'), result.stderr
    assert 'SWD x1000, 48x32' in result.stdout and 'SWD x1000, 24x16' in result.stdout
