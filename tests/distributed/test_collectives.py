"""Collectives among replicas that are CPU devices of one process."""

import numpy as np
import pytest

import dcgan
from dcgan import Losses
from distributed import collectives
from distributed.cluster import Worker
from distributed.collectives import CollectiveReplica
from graph.replica import Replica
from graph.session import tf
from systems import SYSTEMS


def run_replicas(build, count):
    """What `build(replica)` computes on each of `count` replicas, in their order."""
    with tf.Graph().as_default() as graph:
        fetches = []
        for index in range(count):
            with tf.device(f'/cpu:{index}'), tf.variable_scope(f'replica{index}'):
                fetches.append(build(CollectiveReplica(index, count)))
        with tf.Session(graph=graph, config=tf.ConfigProto(device_count={'CPU': count})) as session:
            session.run(tf.global_variables_initializer())
            return session.run(fetches)


def test_rows_are_gathered_in_the_order_of_replicas():
    results = run_replicas(lambda replica: replica.all_gather(tf.fill([2], float(replica.index))), 12)
    for rows in results:
        np.testing.assert_array_equal(rows, np.repeat(np.arange(12.0), 2).reshape(12, 2))


def test_variables_of_all_types_get_the_values_of_the_first_replica():
    def build(replica):
        values = np.arange(6, dtype=np.float32).reshape(2, 3), np.int64(2**60 + 1), np.float32(np.pi)
        variables = [tf.get_variable(f'v{i}', initializer=value + replica.index) for i, value in enumerate(values)]
        with tf.control_dependencies([variable.initializer for variable in variables]):
            operation = replica.broadcast_variables(variables)
        with tf.control_dependencies([operation]):
            return [variable.read_value() for variable in variables]

    first, second = run_replicas(build, 2)
    assert first[1] == 2**60 + 1
    for value, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize('count', [2, 4])
def test_batch_norm_of_shards_is_that_of_the_whole_batch(count):
    rng = np.random.default_rng(0)
    images, weights = rng.normal(0.5, 2, (2, 8, 3, 3, 5)).astype(np.float32)
    scale, offset = rng.normal(1, 0.5, (2, 5)).astype(np.float32)

    def build(replica):
        shard = slice(8 * replica.index // replica.count, 8 * (replica.index + 1) // replica.count)
        inputs = tf.constant(images[shard]), tf.constant(scale), tf.constant(offset)
        y, mean, variance = (
            replica.batch_norm(*inputs, 1e-3) if replica.count > 1 else tf.nn.fused_batch_norm(*inputs, epsilon=1e-3)
        )
        loss = tf.reduce_sum(tf.tanh(y) * weights[shard])
        return y, *tf.gradients(loss, inputs), mean, variance

    ((y, dx, dscale, doffset, mean, variance),) = run_replicas(build, 1)
    results = list(zip(*run_replicas(build, count), strict=True))
    np.testing.assert_allclose(np.concatenate(results[0]), y, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(results[1]), dx, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sum(results[2]), dscale, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sum(results[3]), doffset, rtol=1e-4, atol=1e-4)
    for shard_mean, shard_variance in zip(*results[4:], strict=True):
        np.testing.assert_allclose(shard_mean, mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(shard_variance, variance, rtol=1e-4)


def test_the_variance_is_exact_where_the_mean_is_large():
    images = np.random.default_rng(0).normal(1000, 1, (8, 3, 3, 5)).astype(np.float32)

    def build(replica):
        ones = tf.ones([5])
        return replica.batch_norm(tf.constant(images[4 * replica.index :][:4]), ones, ones, 1e-3)[2]

    for variance in run_replicas(build, 2):
        np.testing.assert_allclose(variance, images.var((0, 1, 2), np.float64, ddof=1), rtol=1e-3)


@pytest.mark.parametrize('stops', [(0, 0, 0), (0, 1, 0), (1, 1, 1)])
def test_losses_are_means_and_scores_those_of_the_whole_batch(stops):
    def build(replica):
        scores = tf.reshape(tf.constant([0.0, 0.1]) + replica.index, [2, 1])
        losses = Losses(tf.constant(replica.index + 1.0), tf.constant(replica.index * 3.0), scores, -scores)
        return replica.gather_losses(losses, tf.constant(float(stops[replica.index])))

    for losses, stopped in run_replicas(build, 3):
        np.testing.assert_allclose(losses[:2], [2, 3], rtol=1e-6)
        np.testing.assert_allclose(losses.d_real, [[0], [0.1], [1], [1.1], [2], [2.1]], rtol=1e-6)
        np.testing.assert_array_equal(losses.d_fake, -losses.d_real)
        assert stopped == any(stops)


def test_gradients_are_packed_into_few_buffers_from_the_end(monkeypatch):
    monkeypatch.setattr(collectives, 'MAX_BUFFER_BYTES', 40)
    sent = []

    class Recorder(CollectiveReplica):
        def all_reduce(self, x):
            sent.append(x)
            return x * tf.cast(self.count, x.dtype)

    values = [np.arange(n, dtype=np.float32).reshape(-1, 2) + n for n in (2, 6, 30, 4, 6)]
    with tf.Graph().as_default(), tf.Session() as session:
        means = Recorder(0, 3).mean(list(map(tf.constant, values)))
        results, buffers = session.run([means, sent])
    for result, value in zip(results, values, strict=True):
        np.testing.assert_allclose(result, value)
    assert [len(buffer) for buffer in buffers] == [10, 30, 8]


def test_gradients_are_averaged_in_float32():
    def build(replica):
        return replica.mean([tf.constant([1.0, 2.0]) + replica.index / 512, tf.constant([[3.0]])])

    for first, second in run_replicas(build, 2):
        assert first.dtype == second.dtype == np.float32
        np.testing.assert_array_equal(first, [1 + 1 / 1024, 2 + 1 / 1024])
        np.testing.assert_array_equal(second, [[3]])


def reductions(replica) -> list:
    """The reductions in the graph of a step that `replica` trains."""
    system = SYSTEMS['oreilly']
    with tf.Graph().as_default() as graph:
        inputs = dcgan.model_inputs(28, 28, 3, system.latent_size)
        with replica.scope():
            dcgan.training_step(system, *inputs)
    return [operation for operation in graph.get_operations() if operation.type == 'CollectiveReduceV2']


def test_a_process_alone_reduces_nothing():
    assert reductions(Replica()) == []


def test_a_worker_reduces_gradients_in_few_buffers_and_all_variables_at_once():
    operations = reductions(Worker(0, ['a:1', 'b:2'], timeout=1.0))
    shapes = [operation.inputs[0].shape for operation in operations]
    sizes = [shape.num_elements() for shape in shapes if shape.is_fully_defined()]
    assert 2 <= sum(10**5 < size < 5 * 10**6 for size in sizes) <= 5  # buffers of gradients
    assert sizes.count(max(sizes)) == 1  # variables
    keys = [int(tf.get_static_value(operation.inputs[3])) for operation in operations]
    assert len(set(keys)) == len(keys)


def test_reductions_run_one_after_the_other_in_the_order_in_which_they_can_start():
    with tf.Graph().as_default():
        replica, x = CollectiveReplica(0, 2), tf.ones([2])
        late = replica.all_reduce(tf.tanh(tf.tanh(x)))
        early = replica.all_reduce(x)
        last = replica.all_reduce(late + early)
        collectives.order_reductions()
    assert early.op.control_inputs == []
    assert late.op.control_inputs == [early.op]
    assert last.op.control_inputs == [late.op]
