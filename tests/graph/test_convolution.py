import doctest
import math
from types import SimpleNamespace

import numpy as np
import pytest

from graph import convolution
from graph.session import tf


@pytest.fixture
def products_for_all_channels(monkeypatch):
    """Take matrix products for the gradients of kernels even if they have few channels."""
    monkeypatch.setattr(convolution, 'min_matmul_channels', lambda: 1)


@pytest.mark.parametrize(
    'side, kernel, stride, padding',
    [
        (7, 5, 1, 'SAME'),
        (14, 5, 2, 'SAME'),
        (8, 4, 2, 'SAME'),
        (8, 3, 1, 'VALID'),
        (8, 4, 2, 'VALID'),
        (7, 5, 2, 'VALID'),
    ],
)
def test_the_gradient_of_kernels_is_that_of_tensorflow(
    products_for_all_channels, rng, evaluate, side, kernel, stride, padding
):
    large = tf.constant(rng.standard_normal((3, side, side, 4), np.float32))
    kernels = tf.constant(rng.standard_normal((kernel, kernel, 4, 6), np.float32))
    result = tf.nn.conv2d(large, kernels, stride, padding)
    small = tf.constant(rng.standard_normal((3, *result.shape[1:]), np.float32))
    (expected,) = tf.gradients(result, kernels, small)
    gradient = convolution.kernel_gradient(large, small, kernels.shape, stride, padding)
    # A stride that does not divide the side is left to TensorFlow.
    assert (gradient.op.type == 'Conv2DBackpropFilter') == bool(side % stride)
    ours, expected = evaluate(gradient, expected)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('side, kernel, stride', [(6, 5, 2), (7, 5, 1), (8, 4, 2), (6, 3, 3)])
@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
def test_slices_that_meet_at_a_pixel_of_a_kernel_are_those_of_the_formula(side, kernel, stride, padding):
    positions = side // stride if padding == 'SAME' else (side - kernel) // stride + 1
    before = max((positions - 1) * stride + kernel - side, 0) // 2 if padding == 'SAME' else 0
    phases = [np.arange(phase, side, stride) for phase in range(stride)]
    overlaps = list(convolution.overlaps(side, positions, kernel, stride, padding))
    assert len(overlaps) == kernel
    for i, (phase, of_large, of_small) in enumerate(overlaps):
        pairs = [(y * stride + i - before, y) for y in range(positions) if 0 <= y * stride + i - before < side]
        assert list(zip(phases[phase][of_large], np.arange(positions)[of_small], strict=True)) == pairs


def test_the_example_of_overlaps_is_right():
    assert doctest.testmod(convolution) == (0, 1)


def both_ways(layer, rng):
    """Our layer and TensorFlow's, functions of images and kernels, and arguments for them."""
    height, width = (4, 2) if 'small' in layer else (8, 12)
    x, kernels = rng.standard_normal((3, height, width, 4), np.float32), rng.standard_normal((5, 5, 6, 4), np.float32)
    if layer == 'convolution':
        return (
            lambda x, kernels: convolution.convolution(x, kernels, 2, 'SAME'),
            lambda x, kernels: tf.nn.conv2d(x, kernels, 2, 'SAME'),
            (x, kernels.swapaxes(2, 3)),
        )
    return (
        lambda x, kernels: convolution.transposed_convolution(x, kernels, (2 * height, 2 * width), 2, 'SAME'),
        lambda x, kernels: tf.nn.conv2d_transpose(x, kernels, [3, 2 * height, 2 * width, 6], 2, 'SAME'),
        (x, kernels),
    )


LAYERS = pytest.mark.parametrize('layer', ['convolution', 'transposed_convolution', 'small transposed_convolution'])


@LAYERS
def test_results_and_gradients_are_those_of_tensorflow(products_for_all_channels, rng, evaluate, layer):
    ours, plain, arguments = both_ways(layer, rng)
    arguments = [tf.constant(value) for value in arguments]
    outcomes = [[y, *tf.gradients(tf.sin(y), arguments)] for y in (ours(*arguments), plain(*arguments))]
    for value, expected in zip(*evaluate(*outcomes), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


@LAYERS
def test_results_and_gradients_in_bfloat16_are_those_in_float32_but_for_rounding(
    products_for_all_channels, rng, evaluate, layer
):
    ours, plain, arguments = both_ways(layer, rng)
    rounded = [tf.cast(tf.constant(value), tf.bfloat16) for value in arguments]
    exact = [tf.cast(value, tf.float32) for value in rounded]
    y, expected = ours(*rounded), plain(*exact)
    dy = tf.cast(tf.constant(rng.standard_normal(expected.shape, np.float32)), tf.bfloat16)
    outcomes = [y, *tf.gradients(y, rounded, dy)]
    assert all(value.dtype == tf.bfloat16 for value in outcomes)
    expected = [expected, *tf.gradients(expected, exact, tf.cast(dy, tf.float32))]
    for value, reference in zip(*evaluate([tf.cast(each, tf.float32) for each in outcomes], expected), strict=True):
        # Rounding a result is an error of at most 2^-9. Where sums of n terms are kept in bfloat16 as well it is about
        # 2^-9 * 0.4 * sqrt(n), here 0.01. One pixel of a kernel of 25 left out would be an error of 0.2.
        assert np.linalg.norm(value - reference) < 0.03 * np.linalg.norm(reference)


@pytest.mark.parametrize('devices, channels', [('CPU', 64), ('CPU GPU', math.inf)])
def test_a_gpu_takes_the_gradients_of_tensorflow(monkeypatch, devices, channels):
    def list_physical_devices(device_type):
        return [SimpleNamespace(device_type=each) for each in devices.split() if each == device_type]

    monkeypatch.setattr(tf.config, 'list_physical_devices', list_physical_devices)
    assert convolution.min_matmul_channels.__wrapped__() == channels
