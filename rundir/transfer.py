"""Initial weights copied from another run (transfer learning)."""

from pathlib import Path

from common import cli
from graph.names import AVERAGE
from graph.session import tf
from rundir import checkpoints


def initial_values(path: Path, graph, frozen: tuple[str, ...]) -> dict:
    """The values that a checkpoint has for the variables of `graph`, by the initial-value tensors they replace.

    path: a run directory or a checkpoint. frozen: scopes of weights that are not trained, and so must be found.
    Copies weights, moving averages and batch norm statistics, but neither the optimisers' state nor the global step.
    Prints what is copied. Raises UserError if no layer fits, or not all of the frozen ones.
    """
    _, (_, prefix), saved = checkpoints.find(path)
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


def match(initial: dict, weights: set[str], saved) -> tuple[dict, dict[str, str]]:
    """Values for the variables whose name and shape the checkpoint `saved` has, and why other weights are missing.

    initial: tensors of initial values by variable. A layer whose kernel does not fit is left out whole. A moving
    average that was not saved is replaced by the weight.
    """
    shapes = saved.get_variable_to_shape_map()
    values: dict = {}
    missing: dict[str, str] = {}
    kernels = {name: tensor for name, tensor in initial.items() if is_kernel(name)}
    unfit_layers = {layer_of(name) for name, kernel in kernels.items() if shapes.get(name) != kernel.shape.as_list()}
    for name, tensor in initial.items():
        if layer_of(name) in unfit_layers and not is_kernel(name):
            continue
        source = name if name in shapes else name.removesuffix(AVERAGE)
        if shapes.get(source) == tensor.shape.as_list():
            values[tensor] = saved.get_tensor(source)
        elif name in weights:
            missing[name] = 'other shape' if source in shapes else 'not there'
    return values, missing


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
