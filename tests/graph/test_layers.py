from dataclasses import replace

import numpy as np
import pytest

from dcgan import network
from graph import layers
from graph.session import tf
from systems import SYSTEMS, Layer

OREILLY = SYSTEMS['oreilly']


def test_a_dense_layer_is_a_matrix_product(rng, evaluate):
    x = rng.standard_normal((5, 2, 3), np.float32)
    y, kernel = evaluate(layers.dense(tf.constant(x), (2, 2, 4), 1.0), *tf.global_variables())
    np.testing.assert_allclose(y, (x.reshape(5, 6) @ kernel).reshape(5, 2, 2, 4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('padding, shape', [('SAME', (2, 4, 4, 4)), ('VALID', (2, 2, 2, 4))])
def test_a_convolution_shrinks_images_by_its_stride(rng, evaluate, padding, shape):
    x = rng.standard_normal((2, 7, 7, 3), np.float32)
    (y,) = evaluate(layers.conv2d(tf.constant(x), 4, 5, 2, padding, 1.0))
    assert y.shape == shape


@pytest.mark.parametrize('side, padding, side_out', [(2, 'VALID', 7), (4, 'SAME', 8), (7, 'SAME', 14)])
def test_a_transposed_convolution_scatters_the_kernel_at_every_stride(rng, evaluate, side, padding, side_out):
    x = rng.standard_normal((2, side, side, 3), np.float32)
    y, kernel = evaluate(layers.conv2d_transpose(tf.constant(x), 4, 5, 2, padding, 1.0), *tf.global_variables())
    assert kernel.shape == (5, 5, 4, 3) and y.shape == (2, side_out, side_out, 4)
    whole = np.zeros((2, 2 * side + 3, 2 * side + 3, 4))
    for i in range(side):
        for j in range(side):
            whole[:, 2 * i : 2 * i + 5, 2 * j : 2 * j + 5] += np.einsum('nc,hwkc->nhwk', x[:, i, j], kernel)
    cut = (2 * side + 3 - side_out) // 2  # 'SAME' removes 3 rows: 1 at the top, 2 at the bottom
    np.testing.assert_allclose(y, whole[:, cut : cut + side_out, cut : cut + side_out], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('per_channel, values', [(True, 3), (False, 12)])
def test_a_bias_belongs_to_a_channel_or_to_a_value_of_an_image(session, rng, per_channel, values):
    x, b = rng.standard_normal((5, 2, 2, 3), np.float32), rng.standard_normal(values, np.float32)
    y = layers.bias(tf.constant(x), per_channel)
    (variable,) = tf.trainable_variables()
    session.run(variable.initializer)
    np.testing.assert_array_equal(session.run(y), x)  # 0 at first
    variable.load(b.reshape(variable.shape), session)
    np.testing.assert_array_equal(session.run(y), x + (b if per_channel else b.reshape(2, 2, 3)))


# --- batch normalisation


def test_batch_norm_in_training_uses_the_batch_and_can_store_its_statistics(rng, session):
    x = rng.standard_normal((4, 3, 3, 2), np.float32) * 3 + 5
    statistics = []
    y = layers.batch_norm(tf.constant(x), training=True, statistics=statistics)
    session.run(tf.global_variables_initializer())
    result = session.run(y)
    session.run(statistics)
    gamma, beta, stored_mean, stored_variance = session.run(tf.global_variables())
    mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    np.testing.assert_allclose(result, (x - mean) / np.sqrt(variance + 1e-3), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stored_mean, mean, rtol=1e-4)
    np.testing.assert_allclose(stored_variance, variance * 36 / 35, rtol=1e-4)  # unbiased
    assert (gamma == 1).all() and (beta == 0).all()


def test_batch_norm_that_stores_nothing_has_no_variables_for_it(evaluate):
    evaluate(layers.batch_norm(tf.ones([4, 3, 3, 2]), training=True))
    assert {variable.op.name for variable in tf.global_variables()} == {'batch_norm/gamma', 'batch_norm/beta'}


def test_batch_norm_in_sampling_uses_the_stored_statistics(rng, session):
    x = rng.standard_normal((4, 3, 3, 2), np.float32)
    y = layers.batch_norm(tf.constant(x), training=False)
    values = {'gamma': (2, 3), 'beta': (4, 5), 'moving_mean': (6, 7), 'moving_variance': (8, 9)}
    assert {variable.op.name for variable in tf.trainable_variables()} == {'batch_norm/gamma', 'batch_norm/beta'}
    for variable in tf.global_variables():
        variable.load(values[variable.op.name.removeprefix('batch_norm/')], session)
    expected = (x - (6, 7)) / np.sqrt(np.array((8, 9)) + 1e-3) * (2, 3) + (4, 5)
    np.testing.assert_allclose(session.run(y), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-4), ('bfloat16', 0.05)])
def test_ghost_batch_norm_normalises_each_group_of_images(rng, session, dtype, tolerance):
    x = rng.standard_normal((6, 3, 3, 2), np.float32) * 3 + np.arange(6).reshape(6, 1, 1, 1)
    images = tf.placeholder(tf.float32, [None, 3, 3, 2])
    y = layers.batch_norm(tf.cast(images, dtype), training=True, ghost_size=2)
    gamma, beta = np.float32([2, 3]), np.float32([4, 5])
    for variable, value in zip(tf.trainable_variables(), (gamma, beta), strict=True):
        variable.load(value, session)
    expected = []
    for group in np.split(x, 3):
        mean, variance = group.mean(axis=(0, 1, 2)), group.var(axis=(0, 1, 2))
        expected.append((group - mean) / np.sqrt(variance + 1e-3) * gamma + beta)
    assert y.dtype == dtype
    result = session.run(tf.cast(y, tf.float32), {images: x})
    np.testing.assert_allclose(result, np.concatenate(expected), rtol=tolerance, atol=tolerance)


# --- dropout


@pytest.fixture
def dropped(at_step):
    """Ones after two operations of dropout, at a rate of 1/4, at steps 0, 0 and 1: (3, 2, 1000, 20)."""
    outputs = [layers.dropout(tf.ones([1000, 20]), 0.25) for _ in range(2)]
    return np.array([at_step(number, outputs) for number in (0, 0, 1)])


def test_dropout_zeros_its_fraction_and_keeps_the_mean(dropped):
    np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose((dropped == 0).mean(axis=(2, 3)), 0.25, atol=0.0125)  # 4 standard deviations of 20,000
    np.testing.assert_allclose(dropped.mean(axis=(2, 3)), 1, atol=0.0167)
    assert ((dropped == 0).mean(axis=2) < 0.4).all()  # in every column: values are dropped one by one


def test_dropout_depends_on_the_operation_and_the_step(dropped):
    now, again, later = dropped
    np.testing.assert_array_equal(now, again)
    for different in (later, now[::-1]):
        # Of independent samples 2 * 1/4 * 3/4 differ.
        np.testing.assert_allclose((now != different).mean(axis=(1, 2)), 0.375, atol=0.02)


# --- networks


# Glorot and Bengio: U(-r, r) with r = sqrt(6 / (fan in + fan out)), a fan being channels times pixels of the kernel.
@pytest.mark.parametrize(
    'layer, side, fans',
    [
        (Layer('dense', (2, 3, 40)), 4, 4 * 4 * 5 + 2 * 3 * 40),
        (Layer('conv2d', 60, kernel=3), 4, 3 * 3 * 5 + 3 * 3 * 60),
        (Layer('conv2d_transpose', 60, kernel=4, stride=2), 4, 4 * 4 * 5 + 4 * 4 * 60),
    ],
    ids=lambda value: getattr(value, 'kind', None),
)
@pytest.mark.parametrize('stddev', [0, 0.02])
def test_initial_weights_are_normal_or_glorot_uniform(evaluate, layer, side, fans, stddev):
    system = replace(OREILLY, weight_stddev=stddev)
    network(system, (layer,), tf.zeros([1, side, side, 5]), training=True)
    (kernel,) = evaluate(*tf.global_variables('layer1/.*kernel'))
    if stddev:
        np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 0.02], atol=0.0015)
        assert np.abs(kernel).max() > 2.5 * 0.02
    else:
        limit = np.sqrt(6 / fans)
        assert 0.99 * limit < np.abs(kernel).max() <= limit
        np.testing.assert_allclose([kernel.mean() / limit, kernel.std() / limit], [0, 1 / np.sqrt(3)], atol=0.05)


def test_each_layer_has_a_scope_and_either_batch_norm_or_a_bias():
    stack = Layer('dense', (2, 2, 4), batch_norm=True), Layer('conv2d_transpose', 3), Layer('conv2d', 2)
    network(OREILLY, stack, tf.zeros([2, 5]), training=False)
    assert {variable.op.name: variable.shape.as_list() for variable in tf.global_variables()} == {
        'layer1/dense/kernel': [5, 16],
        'layer1/batch_norm/gamma': [4],
        'layer1/batch_norm/beta': [4],
        'layer1/batch_norm/moving_mean': [4],
        'layer1/batch_norm/moving_variance': [4],
        'layer2/conv2d_transpose/kernel': [5, 5, 3, 4],
        'layer2/bias': [3],
        'layer3/conv2d/kernel': [5, 5, 3, 2],
        'layer3/bias': [2],
    }
