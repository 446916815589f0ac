import os
import shutil

import numpy as np
import pytest

from sampling import demo
from sampling.generator import PRETRAINED, draw_faces


@pytest.fixture(autouse=True)
def few_faces(monkeypatch):
    monkeypatch.setattr(demo, 'DEMO_FACES', 100)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the pretrained generator, elsewhere and of another time, that the demo is drawn with."""
    copy = shutil.copytree(PRETRAINED, tmp_path / 'copy')
    for path in copy.glob('checkpoints/*'):
        os.utime(path, (0, 0))
    monkeypatch.setattr(demo, 'PRETRAINED', copy)
    return copy


def no_faces(*_, **__):
    raise AssertionError('faces were drawn')


def test_the_demo_is_drawn_once(tmp_path, monkeypatch):
    faces = demo.load_demo(tmp_path / 'prepared', 28)
    assert faces.shape == (100, 28, 28, 3) and faces.dtype == np.uint8
    np.testing.assert_array_equal(faces, np.concatenate(list(draw_faces(PRETRAINED, 100, seed=0))))
    monkeypatch.setattr(demo, 'draw_faces', no_faces)
    np.testing.assert_array_equal(demo.load_demo(tmp_path / 'prepared', 28), faces)


def test_a_copy_of_the_generator_uses_the_same_demo(tmp_path, monkeypatch, copy):
    monkeypatch.setattr(demo, 'PRETRAINED', PRETRAINED)
    faces = demo.load_demo(tmp_path, 28)
    monkeypatch.setattr(demo, 'PRETRAINED', copy)
    monkeypatch.setattr(demo, 'draw_faces', no_faces)
    np.testing.assert_array_equal(demo.load_demo(tmp_path, 28), faces)


def test_other_weights_draw_another_demo(tmp_path, monkeypatch, copy):
    demo.load_demo(tmp_path, 28)
    (data,) = copy.glob('checkpoints/*.data*')
    weights = bytearray(data.read_bytes())
    weights[len(weights) // 2] ^= 1
    data.write_bytes(weights)
    monkeypatch.setattr(demo, 'draw_faces', lambda *_, **__: [np.full((100, 28, 28, 3), 7, np.uint8)])
    assert (demo.load_demo(tmp_path, 28) == 7).all()


def test_the_demo_is_resized_for_larger_networks(tmp_path):
    large, small = demo.load_demo(tmp_path, 64), demo.load_demo(tmp_path, 28)
    assert large.shape == (100, 64, 64, 3) and large.dtype == np.uint8
    np.testing.assert_allclose(large.mean(axis=(1, 2)), small.mean(axis=(1, 2)), atol=2)
