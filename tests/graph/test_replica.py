import threading
from typing import NamedTuple

import numpy as np
import pytest

from graph.replica import Replica, current_replica
from graph.session import tf


class Losses(NamedTuple):
    d_loss: object
    d_real: object


def test_a_process_alone_is_the_chief_of_one_and_computes_whole_batches():
    with Replica() as replica:
        assert (replica.index, replica.count, replica.is_chief) == (0, 1, True)
        assert list(range(10))[replica.shard(10)] == list(range(10))
        settings = {'seed': 1}
        assert replica.broadcast(settings) is settings


def test_the_current_replica_is_that_of_the_innermost_scope():
    outer, inner = Replica(), Replica()
    assert current_replica() not in (outer, inner)
    with outer.scope():
        with pytest.raises(KeyError), inner.scope():
            assert current_replica() is inner
            raise KeyError
        assert current_replica() is outer
    assert current_replica() is not outer


def test_without_a_scope_the_process_is_alone():
    assert type(current_replica()) is Replica


def test_gradients_and_losses_stay_as_they_are():
    replica, gradients = Replica(), [tf.ones([2]), tf.ones([3])]
    losses = Losses(tf.ones([]), tf.ones([4, 1]))
    count = len(tf.get_default_graph().get_operations())
    assert replica.mean(gradients) is gradients
    assert replica.gather(losses) is losses
    assert len(tf.get_default_graph().get_operations()) == count


def test_batch_norm_gives_the_mean_and_the_unbiased_variance(rng, session):
    x = rng.standard_normal((4, 3, 3, 2), np.float32) * 3 + 5
    gamma, beta = np.float32([2, 3]), np.float32([4, 5])
    y, mean, variance = session.run(Replica().batch_norm(tf.constant(x), tf.constant(gamma), tf.constant(beta), 1e-3))
    np.testing.assert_allclose(mean, x.mean(axis=(0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(variance, x.var(axis=(0, 1, 2), ddof=1), rtol=1e-4)
    expected = (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-3) * gamma + beta
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_random_numbers_are_those_of_the_sampler(session):
    shape, seed = tf.constant([5, 2]), tf.constant([1, 2])
    values = Replica().random(tf.random.stateless_normal, shape, seed, tf.float32)
    np.testing.assert_array_equal(*session.run([values, tf.random.stateless_normal(shape, seed)]))


def test_a_step_is_one_run_of_the_session_and_nobody_is_waited_for():
    replica, stop = Replica(), threading.Event()
    x = tf.placeholder(tf.float32, [])
    variable = tf.get_variable('variable', initializer=1.0)
    added = variable.assign_add(x)
    initializer = tf.global_variables_initializer()
    graph = tf.get_default_graph()
    graph.finalize()
    with replica.open_session(graph) as session:
        session.run(initializer)
        replica.synchronize(session)
        assert session.run(variable) == 1
        assert replica.run(session, added, {x: 2}, stop) == (3, False)
        stop.set()
        assert replica.run(session, added, {x: 2}, stop) == (5, True)
        replica.barrier(session)
