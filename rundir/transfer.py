"""Initial weights copied from another run (transfer learning)."""

from pathlib import Path

import numpy as np

from common import cli
from graph.names import AVERAGE, layer_scope
from graph.session import tf
from rundir import checkpoints
from rundir.run_json import read_run, system_of_run
from systems import System


def initial_values(path: Path, graph, system: System, frozen: tuple[str, ...]) -> dict:
    """The values that a checkpoint has for the variables of `graph`, by the initial-value tensors they replace.

    path: a run directory or a checkpoint. frozen: scopes of weights that are not trained, and so must be found.
    Copies weights, moving averages and batch norm statistics, but neither the optimisers' state nor the global step.
    Prints what is copied. Raises UserError if no layer fits, or not all of the frozen ones.
    """
    # The variables of both networks in the checkpoint, for the attributes of this system.
    run_dir, (_, prefix), reader = checkpoints.find(path)
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith(('generator/', 'discriminator/'))]
    saved = {name: reader.get_tensor(name) for name in names}
    attributes = system_of_run(read_run(run_dir)).attributes
    for name, axis in attribute_axes(system).items():
        for each in (name, name + AVERAGE):
            if each in saved:
                saved[each] = for_attributes(saved[each], axis, attributes, system.attributes)

    # The variables of the graph that they fit.
    with graph.as_default():
        variables = tf.global_variables('generator/') + tf.global_variables('discriminator/')
        initial = {variable.op.name: variable.initial_value for variable in variables}
        weights = {variable.op.name for variable in tf.trainable_variables()}
    values, missing = match(initial, weights, saved)
    if missing.keys() >= set(filter(is_kernel, weights)):
        raise cli.UserError(f'--init-from: no layer of {prefix} fits these networks: use its --system and --width')
    if unfit := listed({name: why for name, why in missing.items() if name.startswith(frozen)}):
        raise cli.UserError(f'--freeze-discriminator: {prefix} has no matching weights for {unfit}')
    print(f'Initial weights from {prefix}: {report(missing, weights)}')
    return values


def attribute_axes(system: System) -> dict[str, int]:
    """The variables with an entry for each attribute, and the axis along which these are the last entries."""
    first, last = layer_scope('generator', 1), layer_scope('discriminator', len(system.discriminator))
    return {f'{first}/dense/kernel': 0, f'{last}/dense/kernel': 1, f'{last}/bias': 0}


def for_attributes(value: np.ndarray, axis: int, old: tuple[str, ...], new: tuple[str, ...]) -> np.ndarray:
    """Replace the last entries of `value` along `axis`, one for each of the attributes `old`, by entries for `new`.

    An attribute that is not in `old` gets zeros: at first it has no effect.
    """
    length = value.shape[axis]
    others, *entries = np.split(value, range(length - len(old), length), axis)
    by_name, zeros = dict(zip(old, entries, strict=True)), np.zeros_like(others.take([0], axis))
    return np.concatenate([others, *(by_name.get(name, zeros) for name in new)], axis)


def match(initial: dict, weights: set[str], saved: dict) -> tuple[dict, dict[str, str]]:
    """Values for the variables whose name and shape the checkpoint `saved` has, and why other weights are missing.

    initial: tensors of initial values by variable. A layer whose kernel does not fit is left out whole. A moving
    average that was not saved is replaced by the weight.
    """
    values: dict = {}
    missing: dict[str, str] = {}
    kernels = {name: tensor for name, tensor in initial.items() if is_kernel(name)}
    unfit_layers = {layer_of(name) for name, kernel in kernels.items() if not fits(saved.get(name), kernel)}
    for name, tensor in initial.items():
        if layer_of(name) in unfit_layers and not is_kernel(name):
            continue
        source = name if name in saved else name.removesuffix(AVERAGE)
        if fits(saved.get(source), tensor):
            values[tensor] = saved[source]
        elif name in weights:
            missing[name] = 'other shape' if source in saved else 'not there'
    return values, missing


def fits(value: np.ndarray | None, tensor) -> bool:
    """Whether there is a saved value, with the shape of the tensor."""
    return value is not None and list(value.shape) == tensor.shape.as_list()


def report(missing: dict[str, str], weights: set[str]) -> str:
    """What is copied of each network."""
    parts = []
    for network in ('generator', 'discriminator'):
        reasons = {name: why for name, why in missing.items() if name.startswith(network)}
        if reasons.keys() >= {name for name in weights if is_kernel(name) and name.startswith(network)}:
            parts.append(f'{network} not copied ({", ".join(sorted(set(reasons.values())))})')
        else:
            parts.append(f'{network} copied' + (f' except {listed(reasons)}' if reasons else ''))
    return '; '.join(parts)


def listed(missing: dict[str, str]) -> str:
    """The layers whose kernels are `missing`, and other missing variables such as layer2/bias, with the reason."""
    parts = {'/'.join(name.split('/')[1 : 2 if is_kernel(name) else 3]): why for name, why in missing.items()}
    return ', '.join(f'{part} ({why})' for part, why in parts.items())


def is_kernel(name: str) -> bool:
    """Whether a variable is the kernel of a layer."""
    return name.endswith('/kernel')


def layer_of(name: str) -> str:
    """The scope of a variable's layer, such as generator/layer1."""
    return '/'.join(name.split('/')[:2])
