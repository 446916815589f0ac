"""The settings of a run: the flags of `train.py`, and what they and a system add up to."""

import itertools
import math
import textwrap
from argparse import BooleanOptionalAction, Namespace
from dataclasses import fields, replace
from pathlib import Path

from common import cli
from config.sizes import image_size, resized
from dataset.split import HOLD_OUTS
from graph.session import has_fast_bfloat16
from systems import (
    AUGMENTS,
    CHANNELS,
    LATENTS,
    OBJECTIVES,
    OPTIMIZERS,
    PRECISIONS,
    SYSTEMS,
    UPDATE_ORDERS,
    Layer,
    System,
)

NEWEST = math.inf  # in place of a step: the newest checkpoint
# The values of a system that flags override: what each may be, and its help. Only what follows from the networks
# is missing. A resumed run cannot change these.
OVERRIDES = {
    'batch_size': (cli.number(int, 2, 65_536), 'images per step'),
    'learning_rate': (cli.number(float, 0, 1, exclusive=True), 'of both optimisers'),
    'learning_rate_ratio': (cli.number(float, 0, 1000, exclusive=True), "discriminator's over generator's"),
    'learning_rate_decay': (cli.number(float, 0, 1), 'd: at step n the learning rate is divided by 1 + n * d'),
    'optimizer': (OPTIMIZERS, 'of both networks'),
    'beta1': (cli.number(float, 0, 0.9999), "Adam's decay of the mean gradient"),
    'clip_value': (cli.number(float, 0, 1e9), 'clip gradients to -v..v; 0: no clipping'),
    'objective': (OBJECTIVES, 'what the networks minimise'),
    'real_label': (cli.number(float, 0, 1), "the discriminator's label for real images; 0.9 is label smoothing"),
    'fake_label': (cli.number(float, 0, 1), "the discriminator's label for generated images"),
    'wanted_label': (cli.number(float, 0, 1), "the generator's label for its own images"),
    'label_noise': (cli.number(float, 0, 1), "move the discriminator's labels towards each other by up to this"),
    'discriminator_batch_norm': (bool, 'batch normalisation in the layers of the discriminator that have it'),
    'spectral_norm': (bool, "spectral normalisation of the discriminator's kernels"),
    'freeze_discriminator': (cli.number(int, 0, 100), 'first layers of the discriminator that are not trained'),
    'r1': (cli.number(float, 0, 1e6), "weight of the penalty on the discriminator's gradient at real images"),
    'r1_every': (cli.number(int, 1, 10_000), 'steps between such penalties, each as many times as large'),
    'flip': (cli.number(float, 0, 1), 'probability of mirroring a real image'),
    'augment': (AUGMENTS, 'differentiable augmentation of what the discriminator sees'),
    'instance_noise': (cli.number(float, 0, 10), 'standard deviation of noise on what the discriminator sees, -1..1'),
    'update_order': (UPDATE_ORDERS, 'discriminator first, or both gradients at the same point'),
    'latent_size': (cli.number(int, 1, 65_536), 'dimension of the latents'),
    'latent': (LATENTS, 'latents from U(-1, 1) or N(0, 1)'),
    'leaky_slope': (cli.number(float, 0, 1), 'of the leaky ReLU'),
    'dropout': (cli.number(float, 0, 0.99), 'rate, in the layers that have dropout'),
    'weight_stddev': (cli.number(float, 0, 10), 'initial weights are N(0, s); 0: Glorot uniform'),
    'ema': (cli.number(float, 0, 0.999999), "decay of the moving average of the generator's weights; 0: none"),
    'precision': (('auto', *PRECISIONS), 'in which layers compute; auto: bf16 where the hardware computes it faster'),
    'crop': (cli.number(int, 1, 178), 'side of the square kept of an aligned image of 178x218'),
    'channels': (CHANNELS, '3 for pictures in colour, 1 for grey ones'),
    'samples': (cli.number(int, 1, 4096), 'faces in a grid'),
}
# What stays as it is for the life of a run.
FIXED = (
    'system',
    'image_size',
    'width',
    'init_from',
    'seed',
    'hold_out',
    'attributes',
    'local_batch_norm',
    'reduce_precision',
    *OVERRIDES,
)
PATHS = ('data', 'data_dir', 'attribute_table', 'init_from')  # on this machine, where they are not None
# How long a run is, and when it shows its faces: in steps or in epochs.
SCHEDULES = (('epochs', 'steps'), ('sample_every', 'sample_epochs'))
# The other settings, with their defaults.
DEFAULTS: dict = {
    'image_size': None,
    'width': 1.0,
    'init_from': None,
    'data': 'celeba',
    'data_dir': 'data',
    'seed': 0,
    'hold_out': None,
    'attributes': [],
    'attribute_table': None,
    'evaluate_every': None,
    'checkpoint_every': 1000,
    'keep_every': None,
    'xla': None,
    'steps_per_call': None,
    'deterministic': False,
    'local_batch_norm': False,
    'reduce_precision': 'fp32',
}
# Settings that older runs lack, with the value that means "as it was then".
ADDED = {
    'learning_rate_ratio': 1.0,
    'objective': 'standard',
    'discriminator_batch_norm': True,
    'spectral_norm': False,
    'r1': 0.0,
    'r1_every': 16,
    'flip': 0.0,
    'augment': 'none',
    'instance_noise': 0.0,
    'channels': 3,
    'image_size': None,
    'freeze_discriminator': 0,
    'init_from': None,
    'hold_out': 'images',
    'attributes': [],
    'attribute_table': None,
    'evaluate_every': None,
    'steps_per_call': None,
    'deterministic': False,
    'local_batch_norm': False,
    'reduce_precision': 'fp32',
}


def absolute(text: str) -> str:
    """An argparse type: a path that is not empty, made absolute."""
    return str(cli.path(text).absolute())


def flag(name: str) -> str:
    """The flag of a setting."""
    return '--' + name.replace('_', '-')


def parse_arguments(arguments: list[str] | None = None) -> Namespace:
    """Parse the flags of `train.py`, from the command line unless `arguments` are given. Raises UserError."""
    parser = cli.Parser('Train a DCGAN to draw faces.')
    add, steps, epochs = parser.add_argument, cli.number(int, 1, 10**9), cli.number(int, 1, 1_000_000)
    add('--data', help='celeba (the default, downloaded), demo, or a zip or folder of images')
    add('--data-dir', type=cli.path, default=Path('data'), help='where downloads and prepared faces are kept (data)')
    add('--sources', nargs='+', metavar='URL', help='download CelebA from these URLs instead')
    add('--system', choices=SYSTEMS, help='which article to follow (oreilly)')
    add('--hold-out', choices=HOLD_OUTS, help='hold out every tenth image, or person, to compare with')
    add('--attributes', nargs='+', metavar='NAME', help='what the generator can be asked for: Smiling Male Eyeglasses')
    add('--attribute-table', type=absolute, help='what is to be seen on which image (list_attr_celeba.txt by the data)')
    add('--image-size', type=image_size, metavar='SIZE', help='side of the pictures, or HEIGHTxWIDTH (of the system)')
    add('--width', type=cli.number(float, 0, 16, exclusive=True), help='multiply the channels of all hidden layers (1)')
    add('--init-from', type=absolute, metavar='RUN', help='begin with the weights of this run or checkpoint')
    add('--epochs', type=epochs, help='train for this many passes over the data')
    add('--steps', type=steps, help='train for this many steps in all')
    for name, (kind, what) in OVERRIDES.items():
        if kind is bool:
            add(flag(name), action=BooleanOptionalAction, help=what)
        else:
            add(
                flag(name),
                help=what,
                **({'choices': kind, 'type': type(kind[0])} if isinstance(kind, tuple) else {'type': kind}),
            )
    add('--xla', action=BooleanOptionalAction, help='compile training with XLA (the faster on a GPU)')
    add('--steps-per-call', type=cli.number(int, 1, 10_000), help='at most so many steps in a session call')
    add('--deterministic', action='store_true', default=None, help='make a GPU give the same result each time')
    add('--seed', type=cli.number(int, 0, 2**31 - 1), help='of initial weights, order and latents (0)')
    add('--run-dir', type=cli.path, help='directory of the run (runs/SYSTEM-DATE-TIME)')
    add(
        '--resume', nargs='?', const=NEWEST, type=steps, metavar='STEP', help='go on from the newest checkpoint or STEP'
    )
    add('--sample-every', type=steps, help='steps between grids of samples')
    add('--sample-epochs', type=epochs, help='the same in epochs')
    add('--evaluate-every', type=steps, help='steps between comparisons with held-out faces; the best is kept')
    add('--checkpoint-every', type=steps, help='steps between checkpoints (1000)')
    add('--keep-every', type=epochs, help='epochs between checkpoints that are never deleted')
    add('--workers', type=cli.number(int, 1, 1024), default=1, help='processes on this machine to train with (1)')
    add('--worker-timeout', type=cli.number(float, 0, 86_400, exclusive=True), default=60.0, metavar='SECONDS',
        help='how long a worker may be silent (60); ten times as long at the start')  # fmt: skip
    add('--local-batch-norm', action='store_true', default=None, help='batch norm statistics of each shard by itself')
    add('--reduce-precision', choices=PRECISIONS, help='of the gradients that workers exchange (fp32)')
    add('--preview', action='store_true', help='show samples in the terminal, too')
    add('--gif', action='store_true', help='only make training.gif from the grids in --run-dir')
    add('--list-systems', action='store_true', help='only print all systems side by side')
    add('--devices', action='store_true', help='only print which devices TensorFlow sees')
    args = parser.parse_args(arguments)
    for name in ('resume', 'gif'):
        if getattr(args, name) and not args.run_dir:
            parser.error(f'--{name} needs --run-dir: which run?')
    if args.data == '':
        parser.error('--data is empty')
    if args.attributes and len(set(args.attributes)) < len(args.attributes):
        parser.error('--attributes: one of them is named twice')
    if args.sample_every and args.sample_epochs:
        parser.error('--sample-every and --sample-epochs: use one of them')
    return args


def choose_settings(args: Namespace, saved: dict | None = None) -> dict:
    """The settings of a run: those of the system, or the `saved` ones of a run that goes on, overridden by `args`.

    Of two settings in SCHEDULES the one given last counts. A precision 'auto' is resolved. Raises UserError if `args`
    would change what a run cannot change.
    """
    given = {name: value for name, value in vars(args).items() if value is not None}
    if saved is None:
        settings = {'system': given.get('system', 'oreilly')} | DEFAULTS
        settings |= {name: getattr(SYSTEMS[settings['system']], name) for name in (*sum(SCHEDULES, ()), *OVERRIDES)}
    else:
        for name in FIXED:
            if given.get(name, saved[name]) not in (saved[name], 'auto'):
                value = 'not set' if saved[name] is None else saved[name]
                raise cli.UserError(f'{flag(name)} is {value} in this run: leave it out, or start another run')
        settings = dict(saved)
    for pair in SCHEDULES:
        if any(name in given for name in pair):
            settings |= dict.fromkeys(pair)
    settings |= {name: given[name] for name in settings if name in given}
    if settings['precision'] == 'auto':
        settings['precision'] = saved['precision'] if saved else 'bf16' if has_fast_bfloat16() else 'fp32'
    if settings['data'] not in ('celeba', 'demo'):
        settings['data'] = str(Path(settings['data']).absolute())
    settings['data_dir'] = str(Path(settings['data_dir']).absolute())
    if settings['attribute_table'] and not settings['attributes']:
        raise cli.UserError('--attribute-table needs --attributes: which of them?')
    layers = len(system_of(settings).discriminator)  # raises UserError if its networks cannot have the size
    if settings['freeze_discriminator'] >= layers:
        raise cli.UserError(
            f'--freeze-discriminator: at most {layers - 1} of its {layers} layers, since one has to learn'
        )
    if settings['freeze_discriminator'] and not settings['init_from']:
        raise cli.UserError('--freeze-discriminator needs --init-from: random weights would stay random')
    if settings['objective'] != 'standard':
        for name in ('real_label', 'fake_label', 'wanted_label', 'label_noise'):
            if settings[name] != getattr(SYSTEMS[settings['system']], name):
                raise cli.UserError(
                    f'{flag(name)} has no effect with --objective {settings["objective"]}: leave it out'
                )
    return settings


def flags_of(settings: dict) -> list[str]:
    """Flags that give these settings, where they can be given."""
    flags = []
    for name, value in settings.items():
        if value is True or (value is False and name in ('xla', *OVERRIDES)):
            flags.append(flag(name) if value else flag(f'no_{name}'))
        elif isinstance(value, list):
            flags += [flag(name), *map(str, value)] if value else []
        elif value is not None and value is not False:
            flags.append(f'{flag(name)}={value}')
    return flags


def check_settings(saved: dict) -> None:
    """Raise UserError unless flags can express the settings in run.json, `saved`."""
    known = {'system', *DEFAULTS, *sum(SCHEDULES, ()), *OVERRIDES}
    odd = {'unknown': set(saved) - known, 'missing': known - set(saved) - set(ADDED)}
    if wrong := '; '.join(f'{what}: {", ".join(sorted(names))}' for what, names in odd.items() if names):
        raise cli.UserError(f'the settings in run.json are damaged, or of a newer version; {wrong}')
    try:
        settings = choose_settings(parse_arguments(flags_of(saved)))
        settings |= {name: saved[name] for name in PATHS if isinstance(saved.get(name), str)}
        wrong = ', '.join(flag(name) for name in saved if settings[name] != saved[name])
    except cli.UserError as error:
        wrong = str(error)
    if wrong:
        raise cli.UserError(f'the settings in run.json are damaged: {wrong}')


def system_of(settings: dict) -> System:
    """The system of a run, with the values that its settings override and as wide as they say."""
    system = SYSTEMS[settings['system']]
    system = resized(system, settings['image_size'] or system.image_size, settings['channels'])
    system = replace(system, **{name: settings[name] for name in OVERRIDES})
    generator, discriminator = (
        tuple(widened(layer, settings['width']) for layer in layers[:-1]) + layers[-1:]
        for layers in (system.generator, system.discriminator)
    )
    attributes = tuple(settings['attributes'])
    return replace(system, generator=generator, discriminator=discriminator, attributes=attributes)


def widened(layer: Layer, width: float) -> Layer:
    """`layer` with `width` times its channels, at least 1."""
    return layer.with_channels(max(1, round(layer.channels * width)))


def list_systems() -> str:
    """All systems side by side, with a row for each layer and each of the other values."""
    rows = [['', *SYSTEMS]]
    for field in (field.name for field in fields(System)):
        values = [getattr(system, field) for system in SYSTEMS.values()]
        if field in ('generator', 'discriminator'):
            layers = enumerate(itertools.zip_longest(*values), 1)
            rows += [[f'{field} {number}', *map(describe, row)] for number, row in layers]
        elif any(value != () for value in values):
            rows.append([field.replace('_', ' '), *('' if value is None else str(value) for value in values)])
    lines = [line for row in rows for line in itertools.zip_longest(*(textwrap.wrap(x, 24) for x in row), fillvalue='')]
    return '\n'.join('  '.join(cell.ljust(24) for cell in line).rstrip() for line in lines)


def describe(layer: Layer | None) -> str:
    """A layer in the words of the articles."""
    if layer is None:
        return ''
    if isinstance(layer.output, tuple):
        what = f'dense {"x".join(map(str, layer.output))}'
    else:
        kind = {'conv2d': 'convolution', 'conv2d_transpose': 'deconvolution'}[layer.kind]
        what = f'{kind} {layer.output} {layer.kernel}x{layer.kernel}/{layer.stride} {layer.padding}'
    activation = {'leaky_relu': 'leaky ReLU', 'relu': 'ReLU', 'tanh': 'tanh', None: 'linear'}[layer.activation]
    return ', '.join([what, *['BN'] * layer.batch_norm, activation, *['dropout'] * layer.dropout])
