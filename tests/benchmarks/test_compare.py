"""Comparison of trainings: rows of the table and of the picture, and the PyTorch program."""

import argparse
import signal
import subprocess
import sys
import time

import compare
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import helper
from sampling.pictures import LABEL_HEIGHT

SIDE, HELD_OUT = 28, 20  # pixels, faces


@pytest.fixture
def faces():
    return np.random.default_rng(0).integers(0, 256, (10 * HELD_OUT, SIDE, SIDE, 3), np.uint8)


def test_each_training_is_a_value_in_the_table_and_a_row_of_the_picture(faces, tmp_path, monkeypatch, capsys):
    variants, seeds = ['pytorch_examples --batch-size 32', '--flip 0'], [0, 1]
    args = argparse.Namespace(
        base='--system oreilly', variants=variants, seeds=seeds, minutes=[2.0], count=HELD_OUT,
        pytorch=None, picture=tmp_path / 'picture.png',
    )  # fmt: skip
    # The run directories: each training draws faces of one colour.
    monkeypatch.setattr(compare, 'draw_faces', lambda path, count, seed: iter([np.load(path / 'faces.npy')]))
    runs = [(variant, seed) for variant in ['', *variants] for seed in seeds]
    for number, (variant, seed) in enumerate(runs):
        where = compare.run_dir(args, tmp_path, variant, seed, 2.0)
        where.mkdir()
        (where / 'log.csv').write_text('step\n' + '1\n' * (1000 + number))
        np.save(where / 'faces.npy', np.full((HELD_OUT, SIDE, SIDE, 3), 40 * number, np.uint8))

    compare.report(args, tmp_path, helper.Dataset(faces))
    rows = [line.split(' | ') for line in capsys.readouterr().out.splitlines() if line.startswith('| ')]
    assert [row[0] for row in rows[3:]] == ['| base, `--system oreilly`', *(f'| `{variant}`' for variant in variants)]
    assert [row[1] for row in rows[2:]] == ['', '1,000, 1,001', '1,002, 1,003', '1,004, 1,005']
    pixels = np.asarray(Image.open(args.picture))
    height = SIDE + LABEL_HEIGHT
    assert pixels.shape == (len(runs) * height, compare.PICTURED * SIDE, 3)
    for number in range(len(runs)):
        assert (pixels[number * height : number * height + SIDE] == 40 * number).all()


def test_variants_of_pytorch_require_an_interpreter(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['compare.py', '--data', 'demo', 'pytorch_examples', '--minutes', '1'])
    with pytest.raises(SystemExit):
        compare.main()
    assert 'pytorch_examples requires --pytorch' in capsys.readouterr().err


def test_the_pytorch_program_trains_until_sigterm_and_then_draws(tmp_path):
    pytest.importorskip('torch')
    faces, out = tmp_path / 'faces.npy', tmp_path / 'out'
    np.save(faces, np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8))
    flags = ['--faces', faces, '--batch-size', '4', '--count', '5', '--out', out]
    command = [sys.executable, '-u', ROOT / 'benchmarks' / 'pytorch_examples.py', *flags]
    with subprocess.Popen(command) as process:
        # Stop it in the second epoch.
        log = out / 'log.csv'
        while process.poll() is None and not (log.exists() and log.read_text().count('\n') >= 4):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    drawn = np.load(out / 'faces.npy')
    assert drawn.shape == (5, 64, 64, 3) and drawn.dtype == np.uint8 and len(np.unique(drawn, axis=0)) == 5
