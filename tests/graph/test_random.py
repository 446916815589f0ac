import zlib

import numpy as np
import pytest

from graph.random import random_normal, random_uniform
from graph.session import tf

SAMPLERS = pytest.mark.parametrize('sampler', [random_uniform, random_normal])


def test_uniform_numbers_fill_their_range_evenly(at_step):
    values = at_step(0, random_uniform([100, 100], 'name', -3, 5))
    assert -3 <= values.min() < -2.99 and 4.99 < values.max() < 5
    counts, _ = np.histogram(values, 8, (-3, 5))
    np.testing.assert_allclose(counts, 1250, atol=4 * 33)  # 4 standard deviations


def test_normal_numbers_have_the_standard_moments(at_step):
    values = at_step(0, random_normal([100, 100], 'name'))
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=0.04)
    np.testing.assert_allclose(np.mean(np.abs(values) < 1), 0.6827, atol=0.02)


def test_numbers_are_float32_unless_another_type_is_wanted():
    assert random_uniform([2], 'name').dtype == random_normal([2], 'name').dtype == tf.float32
    assert random_uniform([2], 'name', dtype=tf.bfloat16).dtype == tf.bfloat16


@SAMPLERS
def test_numbers_differ_between_operations_and_steps(at_step, sampler):
    # The same name again counts as another operation.
    tensors = [sampler([1000], name) for name in ('first', 'second', 'first')]
    now, again, later = (np.array(at_step(number, tensors)) for number in (3, 3, 4))
    np.testing.assert_array_equal(now, again)
    assert len(np.unique([*now, *later], axis=0)) == 6
    np.testing.assert_allclose(np.corrcoef([*now, *later]), np.eye(6), atol=0.16)  # 5 standard deviations


@SAMPLERS
def test_numbers_depend_on_the_seed_of_the_graph(at_step, sampler):
    values = []
    for seed in (0, 1):
        tf.set_random_seed(seed)
        values.append(at_step(0, sampler([1000], 'name')))
    assert (values[0] != values[1]).all()


@pytest.mark.parametrize('scope', ['', 'scope/'])
def test_numbers_are_those_of_older_runs(at_step, scope):
    """The seed is the CRC-32 of the operation's name xor the graph's seed, and the step: runs resume with the same."""
    tf.set_random_seed(5)
    tf.ones([2], name='unrelated')
    with tf.name_scope(scope):
        tensors = [random_uniform([2, 3], 'name') for _ in range(2)]
    for tensor, name in zip(tensors, ('name', 'name_1'), strict=True):
        seed = zlib.crc32((scope + name).encode()) ^ 5
        expected = tf.random.stateless_uniform([2, 3], tf.constant([seed, 7], tf.int64))
        np.testing.assert_array_equal(*at_step(7, [tensor, expected]))
