"""The processes that train together, as the graph and the training loop see them.

`Replica` trains alone: its methods do nothing, or what TensorFlow does anyway. `distributed.cluster.Worker`, one of
several, overrides them. So neither layers nor `train.py` ask how many processes there are.
"""

import contextlib
import threading

from graph.session import open_session, tf
from graph.steps import MIN_COMPILED, repeat


class Replica:
    """A process that trains alone."""

    index, count = 0, 1
    local_batch_norm, reduce_precision = False, 'fp32'  # see `scope`

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory and talks to the user."""
        return self.index == 0

    def __enter__(self):
        """Meet the other replicas."""
        return self

    def __exit__(self, *error) -> None:
        """Leave them."""

    def shard(self, batch_size: int) -> slice:
        """The rows of every batch that this replica computes. Raises UserError if the batch cannot be divided."""
        return slice(None)

    def broadcast(self, value):
        """The chief's `value`, anything that JSON can express, on every replica."""
        return value

    @contextlib.contextmanager
    def scope(self, local_batch_norm: bool = False, reduce_precision: str = 'fp32'):
        """What is built inside computes this replica's shard of a batch, and gradients of the whole batch.

        local_batch_norm: normalise with the shard's statistics. reduce_precision: 'fp32' or 'bf16', to send gradients.
        """
        self.local_batch_norm, self.reduce_precision = local_batch_norm, reduce_precision
        replicas = tf.get_collection_ref('replica')
        replicas.append(self)
        try:
            yield
        finally:
            replicas.pop()

    def repeat(self, step, inputs: list, size: int, count, xla: bool) -> list:
        """`count` training steps in one session call, see `graph.steps.repeat`.

        xla: as one compiled program, which takes `size` batches, or MIN_COMPILED, whatever `count` is.
        """
        if xla:
            return tf.xla.experimental.compile(lambda: repeat(step, inputs, max(size, MIN_COMPILED), count))
        return repeat(step, inputs, count, count)

    def batch_norm(self, x, gamma, beta, epsilon: float) -> tuple:
        """Batch normalisation of (N, H, W, C): the result, and the mean and the unbiased variance (C,) of the batch."""
        return tf.nn.fused_batch_norm(x, gamma, beta, epsilon=epsilon)

    def random(self, sampler, shape, seed, dtype):
        """What `sampler`, one of tf.random.stateless_*, gives for this replica's shard. shape: that of the shard."""
        return sampler(shape, seed, dtype=dtype)

    def mean(self, gradients: list) -> list:
        """The mean of each gradient over all replicas."""
        return gradients

    def gather(self, losses):
        """The whole batch's `dcgan.Losses`; `fake` stays the shard's. Call it last: the methods below need it."""
        return losses

    def open_session(self, graph):
        """A session on the devices of this replica."""
        return open_session(graph)

    def synchronize(self, session) -> None:
        """Give every replica the variables of the chief."""

    def run(self, session, fetches, feed: dict, stop: threading.Event):
        """Run one training step; returns what was fetched, and whether any replica was asked to stop."""
        return session.run(fetches, feed), stop.is_set()

    def barrier(self, session) -> None:
        """Wait until all replicas are here."""


class Ghosts(Replica):
    """Batch normalisation of groups of `size` images in place of the batch (Hoffer et al., 2017, arXiv:1705.08741)."""

    def __init__(self, replica: Replica, size: int):
        self.replica, self.size = replica, size

    def batch_norm(self, x, gamma, beta, epsilon: float) -> tuple:
        ghosts = tf.reshape(tf.cast(x, tf.float32), [-1, self.size, *x.shape[1:]])
        mean, variance = tf.nn.moments(ghosts, [1, 2, 3], keepdims=True)
        y = tf.nn.batch_normalization(ghosts, mean, variance, beta, gamma, epsilon)
        return tf.cast(tf.reshape(y, [-1, *x.shape[1:]]), x.dtype), mean, variance

    def random(self, sampler, shape, seed, dtype):
        return self.replica.random(sampler, shape, seed, dtype)


def current_replica():
    """The replica whose `scope` is open in the current graph; outside of any, a process alone."""
    return next(reversed(tf.get_collection('replica')), Replica())
