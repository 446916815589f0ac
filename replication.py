"""How do several processes train as one? Reductions and random numbers, in the graph of each of them."""

import contextlib
import itertools
import math
import zlib
from typing import NamedTuple

from runtime import tf
from systems import PRECISIONS

BUFFER_BYTES = 8 << 20  # of gradients, that are reduced at once
INSTANCES = itertools.count(1)  # every reduction of a process has a number, which is the same in all processes


class Replicas(NamedTuple):
    """The processes that train together, each on an equal part of every batch, and which of them this one is."""

    count: int
    rank: int
    timeout: float  # seconds that a reduction may take
    batch_norm: bool = True  # normalise with the statistics of the whole batch, not of the part
    precision: str = 'fp32'  # of the gradients that are sent, one of PRECISIONS


@contextlib.contextmanager
def replicated(replicas: Replicas | None):
    """What is built inside computes one replica's part of a batch, and its gradients are those of the whole one.

    None: there is one replica, and nothing is added to the graph.
    """
    stack = tf.get_collection_ref('replicas')
    stack.append(replicas)
    try:
        yield
    finally:
        stack.pop()


def current_replicas() -> Replicas | None:
    """What `replicated` was told."""
    return (tf.get_collection('replicas') or [None])[-1]


def all_reduce(x, replicas: Replicas):
    """The sum of `x` over all replicas: TensorFlow's collective, by gRPC between machines, by NCCL between GPUs."""
    with tf.xla.experimental.jit_scope(compile_ops=False):
        total = tf.raw_ops.CollectiveReduceV2(
            input=x,
            group_size=replicas.count,
            group_key=1,
            instance_key=next(INSTANCES),
            ordering_token=[],
            merge_op='Add',
            final_op='Id',
            timeout_seconds=replicas.timeout,
        )
    total.set_shape(x.shape)
    return total


def mean_gradients(gradients, replicas: Replicas):
    """The means of `gradients`, tensors float32, over all replicas: packed into a few buffers, which are reduced.

    The backward pass makes the last first. So a buffer is filled from the end, and on its way while the pass goes on.
    """
    dtype, buffers, size = tf.as_dtype(PRECISIONS[replicas.precision]), [], math.inf
    for gradient in reversed(gradients):
        more = gradient.shape.num_elements() * dtype.size
        if size + more > BUFFER_BYTES:
            buffers.append([])
            size = 0
        buffers[-1].append(gradient)
        size += more
    means = []
    for buffer in buffers:
        flat = tf.concat([tf.reshape(tf.cast(gradient, dtype), [-1]) for gradient in buffer], axis=0)
        flat = tf.cast(all_reduce(flat, replicas), tf.float32) / replicas.count
        parts = tf.split(flat, [gradient.shape.num_elements() for gradient in buffer])
        means += [tf.reshape(part, gradient.shape) for part, gradient in zip(parts, buffer, strict=True)]
    return means[::-1]


def gather_losses(losses, stop, replicas: Replicas):
    """The `Losses` of whole batches from those of this replica's part, and on how many replicas `stop`, 0 or 1, is 1.

    `fake` stays this replica's own.
    """
    count, rank = replicas.count, replicas.rank
    rows = tf.shape(losses.d_real)[0]
    scores = tf.concat([losses.d_real, losses.d_fake], axis=1)
    scores = tf.pad(scores, [[rank * rows, (count - 1 - rank) * rows], [0, 0]])  # their places in the whole batch
    numbers = tf.stack([losses.d_loss / count, losses.g_loss / count, stop])
    numbers, scores = tf.split(all_reduce(tf.concat([numbers, tf.reshape(scores, [-1])], 0), replicas), [3, -1])
    d_loss, g_loss, stops = tf.unstack(numbers)
    d_real, d_fake = tf.split(tf.reshape(scores, [-1, 2]), 2, axis=1)
    return losses._replace(d_loss=d_loss, g_loss=g_loss, d_real=d_real, d_fake=d_fake), stops


def order_reductions():
    """Have all reductions of the graph, so far, run in one order, as NCCL needs it: that in which they can start."""
    depths, graph = {}, tf.get_default_graph()
    for operation in graph.get_operations():
        before = [tensor.op for tensor in operation.inputs] + operation.control_inputs
        depths[operation.name] = 1 + max((depths[other.name] for other in before), default=0)
    reductions = [operation for operation in graph.get_operations() if operation.type == 'CollectiveReduceV2']
    reductions.sort(key=lambda operation: depths[operation.name])
    for first, second in itertools.pairwise(reductions):
        second._add_control_input(first)


def broadcast(variables, replicas: Replicas):
    """An operation that gives `variables` the values that they have on replica 0."""
    updates = []
    for dtype in sorted({variable.dtype.base_dtype for variable in variables}, key=str):
        some = [variable for variable in variables if variable.dtype.base_dtype == dtype]
        flat = tf.concat([tf.reshape(variable, [-1]) for variable in some], axis=0)
        flat = all_reduce(flat if replicas.rank == 0 else tf.zeros_like(flat), replicas)
        parts = tf.split(flat, [variable.shape.num_elements() for variable in some])
        pairs = zip(parts, some, strict=True)
        updates += [variable.assign(tf.reshape(part, variable.shape)) for part, variable in pairs]
    return tf.group(updates)


def stateless_random(draw, shape, seed, dtype=tf.float32):
    """What `draw`, of tf.random.stateless_*, gives for a part of a batch: this replica's part of the whole batch's."""
    replicas = current_replicas()
    if not replicas:
        return draw(shape, seed, dtype=dtype)
    whole = draw(tf.concat([shape[:1] * replicas.count, shape[1:]], 0), seed, dtype=dtype)
    return whole[shape[0] * replicas.rank : shape[0] * (replicas.rank + 1)]


def normalise_over_replicas(x, gamma, beta, epsilon, replicas: Replicas):
    """`tf.nn.fused_batch_norm` of the whole batch, of which `x` is this replica's part."""
    values = tf.cast(tf.size(x) // x.shape[-1], tf.float32)

    @tf.custom_gradient
    def normalise(x, gamma, beta):
        _, mean, variance = tf.nn.fused_batch_norm(x, tf.ones_like(gamma), tf.zeros_like(beta))
        square = variance * (values - 1) / values + tf.square(mean)  # it gives the unbiased variance
        mean, square = tf.unstack(all_reduce(tf.stack([mean, square]), replicas) / replicas.count)
        variance = tf.maximum(square - tf.square(mean), 0)
        y, _, _ = tf.nn.fused_batch_norm(x, gamma, beta, mean, variance, epsilon, is_training=False)

        def gradient(dy, *_):
            # As if mean and variance were constants, and then what they add, of the whole batch.
            dx, dgamma, dbeta, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=dy, x=x, scale=gamma, reserve_space_1=mean, reserve_space_2=variance,
                reserve_space_3=[], epsilon=epsilon, is_training=False,
            )  # fmt: skip
            of_gamma, of_beta = tf.unstack(all_reduce(tf.stack([dgamma, dbeta]) / values, replicas) / replicas.count)
            scale = -gamma * tf.rsqrt(variance + epsilon)
            added, _, _ = tf.nn.fused_batch_norm(
                x, scale * of_gamma, scale * of_beta, mean, variance, epsilon, is_training=False
            )
            return dx + added, dgamma, dbeta

        return (y, mean, variance), gradient

    y, mean, variance = normalise(x, gamma, beta)
    whole = values * replicas.count
    return y, mean, variance * whole / (whole - 1)


def random_seed(name):
    """The seed of a stateless random operation: each has its own, decided by the graph's seed and the step.

    So a resumed run draws what it would have drawn.
    """
    graph = tf.get_default_graph()
    of_operation = zlib.crc32(graph.unique_name(name).encode()) ^ (graph.seed or 0)
    return tf.stack([tf.constant(of_operation, tf.int64), tf.train.get_or_create_global_step()])
