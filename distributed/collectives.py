"""Collective operations: what replicas that train together add to their graphs.

How it works, with two replicas and a batch of 8:

    replica 0, images 0..3:  forward -> batch norm -> losses -> gradients -> the same update of the weights
                                            |                       |
    replica 1, images 4..7:  forward -> batch norm -> losses -> gradients -> the same update of the weights

The vertical lines are sums over all replicas, sent by gRPC or, between GPUs, by NCCL. All else is made of this sum: a
broadcast adds the chief's value to zeros; a gather adds rows that are zero on all replicas but one.
"""

import itertools

from graph.replica import Replica
from graph.session import tf

MAX_BUFFER_BYTES = 8 << 20  # size of gradients that are reduced together; a larger gradient has its own buffer


class CollectiveReplica(Replica):
    """One of `count` replicas, all of which must create the same operations in the same order.

    The operations wait for the other replicas without a limit.
    """

    def __init__(self, index: int, count: int):
        self.index, self.count = index, count
        self._keys = itertools.count(1)  # instance keys, by which operations of different replicas are matched

    def all_reduce(self, x):
        """The sum of `x` over all replicas."""
        with tf.xla.experimental.jit_scope(compile_ops=False):
            total = tf.raw_ops.CollectiveReduceV2(
                input=x, merge_op='Add', final_op='Id', group_size=self.count, group_key=1,
                instance_key=next(self._keys), ordering_token=[],
            )  # fmt: skip
        total.set_shape(x.shape)
        return total

    def all_gather(self, x):
        """The `x` of every replica, stacked: (count, *x.shape)."""
        # Not CollectiveGatherV2, which would put replica 10 before replica 2.
        padding = [[self.index, self.count - 1 - self.index]] + [[0, 0]] * x.shape.rank
        return self.all_reduce(tf.pad(x[tf.newaxis], padding))

    def broadcast_tensor(self, x):
        """The `x` of replica 0."""
        return self.all_reduce(x if self.index == 0 else tf.zeros_like(x))

    def broadcast_variables(self, variables: list):
        """An operation that gives all replicas the values that `variables` have on replica 0."""
        assignments = []
        # One reduction for each type instead of one for each variable.
        for dtype in sorted({variable.dtype.base_dtype for variable in variables}, key=str):
            same_type = [variable for variable in variables if variable.dtype.base_dtype == dtype]
            values = as_one_vector(same_type, self.broadcast_tensor)
            assignments += [variable.assign(value) for variable, value in zip(same_type, values, strict=True)]
        return tf.group(assignments)

    def repeat(self, step, inputs: list, shapes: list, size: int, count, xla: bool) -> list:
        """One step; with `xla` it is several compiled programs, with the reductions between them."""
        with tf.xla.experimental.jit_scope(compile_ops=xla):
            return [result[tf.newaxis] for result in step(*inputs)]

    def batch_norm(self, x, gamma, beta, epsilon: float) -> tuple:
        if self.local_batch_norm:
            return super().batch_norm(x, gamma, beta, epsilon)
        size = tf.cast(tf.size(x) // x.shape[-1], tf.float32)  # values per channel in the shard
        whole_size = size * self.count

        @tf.custom_gradient
        def normalize(x, gamma, beta) -> tuple:
            # Combine the statistics of equal shards (Chan et al., 1979). Averaging the squares and subtracting the
            # squared mean would be simpler, but cancels in float32 if the mean is large.
            _, mean, variance = tf.nn.fused_batch_norm(x, tf.ones_like(gamma), tf.zeros_like(beta))
            means, variances = tf.unstack(self.all_gather(tf.stack([mean, variance])), axis=1)
            mean = tf.reduce_mean(means, axis=0)
            variance = tf.reduce_mean(variances, axis=0) * (size - 1) / size + tf.math.reduce_variance(means, axis=0)

            # Normalise the shard: y = gamma * x' + beta, where x' = (x - mean) / sqrt(variance + epsilon).
            y, _, _ = tf.nn.fused_batch_norm(x, gamma, beta, mean, variance, epsilon, is_training=False)

            def gradient(dy, *_) -> tuple:
                # dx = gamma / sqrt(variance + epsilon) * (dy - (x' * sum(dy * x') + sum(dy)) / n), with sums over the
                # n values of the whole batch. First the term with dy, as if mean and variance were constants.
                dx, dgamma, dbeta, *_ = tf.raw_ops.FusedBatchNormGradV3(
                    y_backprop=dy, x=x, scale=gamma, reserve_space_1=mean, reserve_space_2=variance,
                    reserve_space_3=[], epsilon=epsilon, is_training=False,
                )  # fmt: skip

                # Then the term with the sums, which are dgamma and dbeta. It is linear in x': another batch norm.
                totals = tf.unstack(self.all_reduce(tf.stack([dgamma, dbeta])))
                scale, offset = (-gamma * tf.rsqrt(variance + epsilon) * total / whole_size for total in totals)
                extra, _, _ = tf.nn.fused_batch_norm(x, scale, offset, mean, variance, epsilon, is_training=False)
                return dx + extra, dgamma, dbeta

            return (y, mean, variance), gradient

        y, mean, variance = normalize(x, gamma, beta)
        return y, mean, variance * whole_size / (whole_size - 1)

    def random(self, sampler, shape, seed, dtype):
        """This replica's shard of the numbers that `sampler` draws for the whole batch."""
        # Every replica draws all numbers, so that they do not depend on the number of replicas.
        whole = sampler(tf.concat([shape[:1] * self.count, shape[1:]], axis=0), seed, dtype=dtype)
        return tf.split(whole, self.count)[self.index]

    def mean(self, gradients: list) -> list:
        """The mean of each float32 gradient over all replicas."""

        def mean(vector):
            return self.all_reduce(vector) / self.count

        # The backward pass computes the last gradients first. Filling buffers from the end of the list lets each be
        # sent while the pass continues.
        buffers: list[list] = [[]]
        size = 0
        for gradient in reversed(gradients):
            gradient_size = gradient.shape.num_elements() * gradient.dtype.size
            if buffers[-1] and size + gradient_size > MAX_BUFFER_BYTES:
                buffers.append([])
                size = 0
            buffers[-1].append(gradient)
            size += gradient_size
        return [gradient for buffer in buffers for gradient in as_one_vector(buffer, mean)][::-1]

    def gather_losses(self, losses, stop) -> tuple:
        """The `dcgan.Losses` of the whole batch, and whether `stop` is 1 on any replica."""
        # One gather of a row per replica: three scalars, then the scores of its real and its generated images.
        scalars = tf.stack([losses.d_loss, losses.g_loss, stop])
        rows = self.all_gather(tf.concat([scalars, losses.d_real[:, 0], losses.d_fake[:, 0]], axis=0))
        d_loss, g_loss, stop = tf.unstack(tf.reduce_mean(rows[:, :3], axis=0), num=3)
        d_real, d_fake = (tf.reshape(scores, [-1, 1]) for scores in tf.split(rows[:, 3:], 2, axis=1))
        return losses._replace(d_loss=d_loss, g_loss=g_loss, d_real=d_real, d_fake=d_fake), stop > 0

    def gather(self, losses):
        """The `dcgan.Losses` of the whole batch. Call it once, after the update and all variables are built.

        It also finishes the graph: it puts the reductions of the step into one order, and adds the operations that
        `run`, `synchronize` and `barrier` execute.
        """
        self._stop = tf.placeholder(tf.float32, [], 'stop')
        losses, self._stopped = self.gather_losses(losses, self._stop)
        order_reductions()
        self._broadcast_variables = self.broadcast_variables(tf.global_variables())
        self._barrier = self.all_reduce(tf.zeros([]))
        return losses


def as_one_vector(tensors: list, operation) -> list:
    """Join tensors into one vector, apply an element-wise `operation` to it, and split the result again."""
    vector = operation(tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0))
    pieces = tf.split(vector, [tensor.shape.num_elements() for tensor in tensors])
    return [tf.reshape(piece, tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def order_reductions() -> None:
    """Make the graph's reductions run one by one, as NCCL requires, in the order in which they can start."""
    # The depth of an operation is the longest path to it: a shallow reduction can start before a deep one.
    depths: dict[str, int] = {}
    operations = tf.get_default_graph().get_operations()
    for operation in operations:
        inputs = [tensor.op for tensor in operation.inputs] + operation.control_inputs
        depths[operation.name] = 1 + max((depths[source.name] for source in inputs), default=0)

    reductions = [operation for operation in operations if operation.type == 'CollectiveReduceV2']
    for first, second in itertools.pairwise(sorted(reductions, key=lambda operation: depths[operation.name])):
        second._add_control_input(first)
