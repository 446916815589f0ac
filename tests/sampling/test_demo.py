import os
import shutil

import numpy as np
import pytest

from sampling import demo as module
from sampling.demo import load_demo
from sampling.generator import PRETRAINED, PRETRAINED_BY_SIZE


@pytest.fixture
def demo(monkeypatch):
    """A demo of few faces, for short tests."""
    monkeypatch.setattr(module, 'DEMO_FACES', 100)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the pretrained generator, elsewhere and of another time, that the demo is drawn with."""
    copy = shutil.copytree(PRETRAINED, tmp_path / 'copy')
    for path in copy.glob('checkpoints/*'):
        os.utime(path, (0, 0))
    monkeypatch.setitem(PRETRAINED_BY_SIZE, 28, copy)
    return copy


def no_faces(*_, **__):
    raise AssertionError('faces were drawn')


@pytest.mark.usefixtures('demo')
def test_the_demo_is_drawn_once(tmp_path, monkeypatch):
    faces = load_demo(tmp_path / 'prepared', (28, 28, 3))
    assert faces.shape == (100, 28, 28, 3) and faces.dtype == np.uint8
    np.testing.assert_array_equal(faces, np.concatenate(list(module.draw_faces(PRETRAINED, 100, seed=0))))
    monkeypatch.setattr(module, 'draw_faces', no_faces)
    np.testing.assert_array_equal(load_demo(tmp_path / 'prepared', (28, 28, 3)), faces)


@pytest.mark.usefixtures('demo')
def test_a_copy_of_the_generator_uses_the_same_demo(tmp_path, monkeypatch, copy):
    monkeypatch.setitem(PRETRAINED_BY_SIZE, 28, PRETRAINED)
    faces = load_demo(tmp_path, (28, 28, 3))
    monkeypatch.setitem(PRETRAINED_BY_SIZE, 28, copy)
    monkeypatch.setattr(module, 'draw_faces', no_faces)
    np.testing.assert_array_equal(load_demo(tmp_path, (28, 28, 3)), faces)


@pytest.mark.usefixtures('demo')
def test_other_weights_draw_another_demo(tmp_path, monkeypatch, copy):
    load_demo(tmp_path, (28, 28, 3))
    (data,) = copy.glob('checkpoints/*.data*')
    weights = bytearray(data.read_bytes())
    weights[len(weights) // 2] ^= 1
    data.write_bytes(weights)
    monkeypatch.setattr(module, 'draw_faces', lambda *_, **__: [np.full((100, 28, 28, 3), 7, np.uint8)])
    assert (load_demo(tmp_path, (28, 28, 3)) == 7).all()


@pytest.mark.usefixtures('demo')
def test_the_demo_of_a_larger_size_is_drawn_by_the_larger_generator(tmp_path):
    faces = load_demo(tmp_path, (64, 64, 3))
    assert faces.shape == (100, 64, 64, 3) and faces.dtype == np.uint8
    np.testing.assert_array_equal(faces, np.concatenate(list(module.draw_faces(PRETRAINED_BY_SIZE[64], 100, seed=0))))


@pytest.mark.usefixtures('demo')
def test_the_demo_is_resized_for_networks_of_other_sizes(tmp_path):
    faces = load_demo(tmp_path, (64, 64, 3))
    for size in 32, 128:
        others = load_demo(tmp_path, (size, size, 3))
        assert others.shape == (100, size, size, 3) and others.dtype == np.uint8
        np.testing.assert_allclose(others.mean(axis=(1, 2)), faces.mean(axis=(1, 2)), atol=2)


@pytest.mark.usefixtures('demo')
def test_the_demo_can_be_grey_and_need_not_be_square(tmp_path):
    grey, colour = load_demo(tmp_path, (28, 28, 1)), load_demo(tmp_path, (28, 28, 3))
    assert grey.shape == (100, 28, 28, 1)
    np.testing.assert_allclose(grey[..., 0], colour @ [0.299, 0.587, 0.114], atol=0.6)
    tall = load_demo(tmp_path, (28, 14, 3))
    assert tall.shape == (100, 28, 14, 3)
    np.testing.assert_array_equal(tall, colour[:, :, 7:21])
