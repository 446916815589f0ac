"""Random numbers that depend only on the run's seed and the step, so that a resumed run draws the same ones again."""

import zlib

from graph.replica import current_replica
from graph.session import tf


def step_seed(name):
    """The seed (2,) of a stateless random operation: one for each operation, graph seed and global step.

    THE SEED IS DERIVED FROM THE OPERATION'S UNIQUE NAME. RENAMING A SCOPE, OR CREATING OPERATIONS OF THE SAME NAME IN
    ANOTHER ORDER, CHANGES EVERY RANDOM NUMBER OF OLD RUNS.
    """
    # CRC-32, because Python's own hash of a string differs between processes.
    graph = tf.get_default_graph()
    operation = zlib.crc32(graph.unique_name(name).encode()) ^ (graph.seed or 0)
    return tf.stack([tf.constant(operation, tf.int64), tf.train.get_or_create_global_step()])


def random_uniform(shape, name, low=0, high=1, dtype=None):
    """U(low, high) of `shape`, by default float32. Drawn for the whole batch, of which a replica gets its shard."""
    values = current_replica().random(tf.random.stateless_uniform, shape, step_seed(name), dtype or tf.float32)
    return low + (high - low) * values if (low, high) != (0, 1) else values


def random_normal(shape, name):
    """N(0, 1) of `shape`, float32. Drawn for the whole batch, of which a replica gets its shard."""
    return current_replica().random(tf.random.stateless_normal, shape, step_seed(name), tf.float32)
