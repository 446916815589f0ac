"""The processes that train together, as the graph and the training loop see them.

`Replica` is the single-process default: every method is a no-op or plain TensorFlow. `distributed.cluster.Worker`,
one of several processes, overrides them. Layers and optimisers call `current_replica()`.
"""

import contextlib
import contextvars
import threading

from graph.session import open_session, tf
from graph.steps import MIN_COMPILED, repeat


class Replica:
    """A process that trains by itself."""

    index, count = 0, 1
    local_batch_norm = False  # see `scope`

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory and talks to the user."""
        return self.index == 0

    def __enter__(self):
        """Connect to the other replicas."""
        return self

    def __exit__(self, *error) -> None:
        """Disconnect from them."""

    # --- Before the graph is built

    def shard(self, batch_size: int) -> slice:
        """The rows of every batch that this replica computes. Raises UserError if the batch cannot be divided."""
        return slice(None)

    def broadcast(self, value):
        """The chief's `value`, which must be JSON-serialisable, on every replica."""
        return value

    # --- While the graph is built

    @contextlib.contextmanager
    def scope(self, local_batch_norm: bool = False):
        """Build operations that compute this replica's shard of a batch, and gradients of the whole batch.

        local_batch_norm: normalise with the statistics of the shard, not of the batch.
        """
        self.local_batch_norm = local_batch_norm
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def repeat(self, step, inputs: list, shapes: list, size: int, count, xla: bool) -> list:
        """Make `count` training steps in one session call, see `graph.steps.repeat`.

        xla: compile them. The program then takes `size` batches (at least MIN_COMPILED), of which it uses `count`.
        """
        if xla:
            return tf.xla.experimental.compile(lambda: repeat(step, inputs, shapes, max(size, MIN_COMPILED), count))
        return repeat(step, inputs, shapes, count, count)

    def batch_norm(self, x, gamma, beta, epsilon: float) -> tuple:
        """Batch normalisation of (N, H, W, C): the result, and the mean and the unbiased variance (C,) of the batch."""
        return tf.nn.fused_batch_norm(x, gamma, beta, epsilon=epsilon)

    def random(self, sampler, shape, seed, dtype):
        """Random values of `shape` for this replica's shard, from `sampler`, one of tf.random.stateless_*."""
        return sampler(shape, seed, dtype=dtype)

    def mean(self, gradients: list) -> list:
        """The mean of each gradient over all replicas."""
        return gradients

    def gather(self, losses):
        """The whole batch's `dcgan.Losses`. Call it after everything else is built: the methods below need it."""
        return losses

    # --- While the session runs

    def open_session(self, graph):
        """A session on the devices of this replica."""
        return open_session(graph)

    def synchronize(self, session) -> None:
        """Copy the variables of the chief to every replica."""

    def run(self, session, fetches, feed: dict, stop: threading.Event):
        """Run one session call; returns the fetched values, and whether any replica was asked to stop."""
        return session.run(fetches, feed), stop.is_set()

    def barrier(self, session) -> None:
        """Wait until all replicas have come to this call."""


_current: contextvars.ContextVar[Replica] = contextvars.ContextVar('replica')


def current_replica() -> Replica:
    """The replica whose `scope` is open, or a single-process Replica."""
    return _current.get(Replica())
