"""Random numbers that depend on the run's seed and the step alone, so that a resumed run draws them again."""

import zlib

from graph.replica import current_replica
from graph.session import tf


def step_seed(name):
    """The seed (2,) of a stateless random operation: one for each operation, seed of the graph and global step."""
    graph = tf.get_default_graph()
    operation = zlib.crc32(graph.unique_name(name).encode()) ^ (graph.seed or 0)
    return tf.stack([tf.constant(operation, tf.int64), tf.train.get_or_create_global_step()])


def random_uniform(shape, name, low=0, high=1, dtype=None):
    """U(low, high) of `shape`, float32 unless `dtype` says otherwise, drawn for the whole batch of all replicas."""
    values = current_replica().random(tf.random.stateless_uniform, shape, step_seed(name), dtype or tf.float32)
    return low + (high - low) * values if (low, high) != (0, 1) else values


def random_normal(shape, name):
    """N(0, 1) of `shape`, float32, drawn for the whole batch of all replicas."""
    return current_replica().random(tf.random.stateless_normal, shape, step_seed(name), tf.float32)
