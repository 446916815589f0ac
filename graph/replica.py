"""The processes that train together, as the graph and the training loop see them.

`Replica` is a process that trains alone: its methods do nothing, or what TensorFlow does anyway.
`distributed.cluster.Worker` is one of several, and overrides them. So neither layers nor `train.py` ask how many
processes there are.
"""

import contextlib
import threading

from graph.session import open_session, tf

COLLECTION = 'replica'  # of a graph; holds the replica it is being built for


class Replica:
    """A process that trains alone."""

    index = 0
    count = 1

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory and talks to the user."""
        return self.index == 0

    # --- before the graph is built

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

    # --- while the graph is built

    @contextlib.contextmanager
    def scope(self, local_batch_norm: bool = False, reduce_precision: str = 'fp32'):
        """What is built inside computes this replica's shard of a batch, and gradients of the whole batch.

        local_batch_norm: normalise with the statistics of the shard instead of those of the whole batch.
        reduce_precision: 'fp32' or 'bf16', in which gradients are sent.
        """
        replicas = tf.get_collection_ref(COLLECTION)
        replicas.append(self)
        try:
            yield
        finally:
            replicas.pop()

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
        """The `dcgan.Losses` of the whole batch from those of the shard; `fake` stays the shard's.

        Call it last: it also adds what `synchronize`, `run` and `barrier` need to the graph.
        """
        return losses

    # --- in the session

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


def current_replica():
    """The replica whose `scope` is open in the current graph; outside of any, a process alone."""
    replicas = tf.get_collection(COLLECTION)
    return replicas[-1] if replicas else Replica()
