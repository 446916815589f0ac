"""The initial weights of a run that goes on from another one: what is taken of it, and what is not."""

import os
from pathlib import Path

from common import cli
from graph.session import tf
from rundir import checkpoints

AVERAGE = '/ExponentialMovingAverage'


def initial_values(path: Path, graph, frozen: tuple[str, ...]) -> dict:
    """What a checkpoint has for the variables of `graph`, by the tensors of their initial values, which it replaces.

    path: a run directory or a checkpoint. frozen: scopes of weights that are not trained, and so have to be taken.
    Weights, their averages and the statistics of batch normalisation are taken where name and shape are the same, but
    not without the kernel of their layer; an average that was not kept is the weight itself. The optimisers and the
    global step begin anew. Says what is taken and what is not. Raises UserError if no kernel fits, or not all weights
    that are frozen.
    """
    prefix = checkpoints.find(path)[1].prefix
    with graph.as_default():
        variables = tf.global_variables('generator/') + tf.global_variables('discriminator/')
        initial = {variable.op.name: variable.initial_value for variable in variables}
        weights = {variable.op.name for variable in tf.trainable_variables()}
    values: dict = {}
    missing: dict[str, str] = {}  # why a weight is not taken
    try:
        saved = tf.train.NewCheckpointReader(os.fsencode(prefix))
        shapes = saved.get_variable_to_shape_map()
        for name in sorted(initial, key=is_kernel, reverse=True):
            source = name if name in shapes else name.removesuffix(AVERAGE)
            if any(is_kernel(other) and layer_of(other) == layer_of(name) for other in missing):
                continue
            if shapes.get(source) == initial[name].shape.as_list():
                values[initial[name]] = saved.get_tensor(source)
            elif name in weights:
                missing[name] = 'other shape' if source in shapes else 'not there'
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError):
        raise cli.UserError(f'{prefix} is damaged') from None
    if missing.keys() >= set(filter(is_kernel, weights)):
        raise cli.UserError(f'--init-from: no layer of {prefix} fits these networks: use its --system and --width')
    if unfit := listed({name: why for name, why in missing.items() if name.startswith(frozen)}):
        raise cli.UserError(f'--freeze-discriminator: {prefix} does not fit what is to be frozen: {unfit}')
    taken = []
    for network in ('generator', 'discriminator'):
        own = {name: why for name, why in missing.items() if name.startswith(network)}
        if own.keys() >= {name for name in weights if is_kernel(name) and name.startswith(network)}:
            taken.append(f'nothing of the {network} ({", ".join(sorted(set(own.values())))})')
        else:
            taken.append(f'all of the {network}' + (f', but for {listed(own)}' if own else ''))
    print(f'Initial weights from {prefix}: {"; ".join(taken)}')
    return values


def is_kernel(name: str) -> bool:
    """Whether a variable is the kernel of a layer."""
    return name.endswith('/kernel')


def layer_of(name: str) -> str:
    """The scope of the layer that a variable belongs to, such as generator/layer1."""
    return '/'.join(name.split('/')[:2])


def listed(missing: dict[str, str]) -> str:
    """The layers whose kernels are `missing`, or what else is, such as layer2/bias, and why."""
    parts = {'/'.join(name.split('/')[1 : 2 if is_kernel(name) else 3]): why for name, why in missing.items()}
    return ', '.join(f'{part} ({why})' for part, why in parts.items())
