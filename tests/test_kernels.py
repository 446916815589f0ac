"""Every operation of every training has a kernel for GPUs, and one for XLA: none of it falls back to the CPU."""

import functools

import pytest
from conftest import chosen
from tensorflow.python.framework import kernels as kernels_of

import train
from graph.replica import Replica
from graph.session import tf

FLAGS = [
    *(
        f'--system {system} --precision {precision}'
        for system in ('oreilly', 'sharma', 'kdnuggets', 'ranjan', 'chandarana', 'recommended', 'recommended64')
        for precision in ('fp32', 'bf16')
    ),
    *(f'--augment {augment}' for augment in ('translation', 'color-translation', 'color-translation-cutout')),
    '--flip 0.5 --instance-noise 0.1 --learning-rate-ratio 2 --learning-rate-decay 0.1 --update-order simultaneous',
    '--objective hinge --spectral-norm',
    '--objective relativistic --r1 1',
]
# What only passes tensors on, or runs on the host by its nature: the loop and its counter.
CONTROL = {'Placeholder', 'NoOp', 'Const', 'Identity', 'While', 'StatelessWhile', 'If', 'StatelessIf', 'VarHandleOp'}

# What the gradient of a condition keeps for its backward pass; with --xla, TensorFlow builds it without them.
NOT_IN_XLA = {'OptionalFromValue', 'OptionalGetValue', 'OptionalNone'}


@functools.cache
def kernels(operation_type):
    return kernels_of.get_registered_kernels_for_op(operation_type).kernel


def has_kernel(node, devices) -> bool:
    """Whether an operation, with the types that it has, can run on one of the devices."""
    return any(
        kernel.device_type in devices
        and all(
            node.attr[limit.name].type in limit.allowed_values.list.type
            or set(node.attr[limit.name].list.type) & set(limit.allowed_values.list.type)
            for limit in kernel.constraint
        )
        for kernel in kernels(node.op)
    )


def nodes_of_training(flags) -> list:
    """The operations of the training steps of a run: those in the body of the loop, and in what it calls."""
    settings, system = chosen(f'{flags} --width 0.03125')
    graph = train.build_graph(
        settings, Replica(), steps_per_call=10, stored=(100, *system.image_shape)
    ).graph.as_graph_def()
    functions = {function.signature.name: function.node_def for function in graph.library.function}
    found: list = []
    pending = [node.attr['body'].func.name for node in graph.node if node.op in ('While', 'StatelessWhile')]
    assert pending
    while pending:
        for node in functions[pending.pop()]:
            found.append(node)
            pending += [value.func.name for value in node.attr.values() if value.HasField('func')]
    return found


@pytest.fixture(scope='module', autouse=True)
def xla():
    """Registers the kernels of XLA."""
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.xla.experimental.compile(lambda: tf.ones([])))


@pytest.mark.parametrize('flags', FLAGS)
def test_no_operation_of_a_training_needs_the_cpu_and_xla_can_compile_all(flags):
    if not any(kernel.device_type == 'GPU' for kernel in kernels('Conv2D')):
        pytest.skip('this TensorFlow was built without GPU kernels')
    nodes = nodes_of_training(flags)
    types = {node.op for node in nodes}
    assert len(nodes) > 300 and {'Conv2D', 'ResourceGather'} < types
    assert {node.op for node in nodes if not has_kernel(node, ('GPU', 'DEFAULT'))} - CONTROL == set()
    assert {node.op for node in nodes if not has_kernel(node, ('XLA_GPU_JIT',))} - CONTROL - NOT_IN_XLA == set()
