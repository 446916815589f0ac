"""What does a training run do? The flags of train.py, and the settings that they and a system make."""

import itertools
import math
import textwrap
from pathlib import Path

import cli
from systems import AUGMENTS, LATENTS, OPTIMIZERS, PRECISIONS, SYSTEMS, UPDATE_ORDERS, Layer, System

NEWEST = math.inf  # in place of a step: the newest checkpoint
# The values of a system that flags override, what each may be, and what it is. All but the layers are there, which
# --width scales, and the image size, which follows from them. A resumed run cannot change these.
OVERRIDES = {
    'batch_size': (cli.number(int, 2, 65_536), 'images a step'),
    'learning_rate': (cli.number(float, 0, 1, above=True), 'of both optimisers'),
    'learning_rate_ratio': (cli.number(float, 0, 1000, above=True), "the discriminator's, divided by the generator's"),
    'learning_rate_decay': (cli.number(float, 0, 1), 'd: at step n the rate is divided by 1 + n * d'),
    'optimizer': (OPTIMIZERS, 'of both networks'),
    'beta1': (cli.number(float, 0, 0.9999), "Adam's decay of the mean gradient"),
    'clip_value': (cli.number(float, 0, 1e9), 'gradients are cut to -v..v; 0: not'),
    'real_label': (cli.number(float, 0, 1), 'what the discriminator should say of a real image'),
    'fake_label': (cli.number(float, 0, 1), 'and of a generated one'),
    'wanted_label': (cli.number(float, 0, 1), 'and what the generator wants it to say'),
    'label_noise': (cli.number(float, 0, 1), "how far the discriminator's labels move towards each other, at random"),
    'flip': (cli.number(float, 0, 1), 'the share of real images that are mirrored, at random'),
    'augment': (AUGMENTS, 'differentiable augmentation of the images that the discriminator sees'),
    'instance_noise': (cli.number(float, 0, 10), 'standard deviation of noise on those images, of -1..1'),
    'update_order': (UPDATE_ORDERS, 'discriminator first, or both at the same point'),
    'latent_size': (cli.number(int, 1, 65_536), 'numbers in a latent'),
    'latent': (LATENTS, 'latents are U(-1, 1) or N(0, 1)'),
    'leaky_slope': (cli.number(float, 0, 1), "leaky ReLU's"),
    'dropout': (cli.number(float, 0, 0.99), 'the rate, in the layers that have dropout'),
    'weight_stddev': (cli.number(float, 0, 10), "initial weights are N(0, s); 0: Glorot's uniform ones"),
    'ema': (cli.number(float, 0, 0.999999), "decay of the averaged generator's weights, 0: none"),
    'precision': (tuple(PRECISIONS), 'what layers compute in; weights are float32 in both'),
    'crop': (cli.number(int, 1, 178), 'side of the square kept of an aligned image, of 178x218'),
    'samples': (cli.number(int, 1, 4096), 'faces in a grid'),
}
# How long a run is, and when it shows its faces: one of each pair, in steps or in epochs, is enough.
SCHEDULES = ('epochs', 'steps'), ('sample_every', 'sample_epochs')

CELL = 24  # characters, in the list of systems


def flag(name) -> str:
    """The flag of a setting."""
    return '--' + name.replace('_', '-')


def parse_arguments(arguments=None):
    """The flags in `arguments`, those of the command line if None. Raises UserError."""
    parser = cli.Parser('Train a DCGAN to draw faces.')
    add, steps, epochs = parser.add_argument, cli.number(int, 1, 10**9), cli.number(int, 1, 1_000_000)
    add('--data', help='celeba (the default, downloaded), demo, or a zip or folder of images')
    add('--data-dir', type=cli.path, default=Path('data'), help='where downloads and prepared faces are kept (data)')
    add('--sources', nargs='+', metavar='URL', help='download CelebA from here instead')
    add('--system', choices=SYSTEMS, help='whose networks and settings (oreilly)')
    add('--width', type=cli.number(float, 0, 16, above=True), help='times the channels of all hidden layers (1)')
    add('--epochs', type=epochs, help='passes over the data')
    add('--steps', type=steps, help='stop after so many steps in all')
    for name, (kind, what) in OVERRIDES.items():
        add(flag(name), help=what, **({'choices': kind} if isinstance(kind, tuple) else {'type': kind}))
    add('--xla', action='store_true', default=None, help='compile the training step with XLA')
    add('--seed', type=cli.number(int, 0, 2**31 - 1), help='decides weights, order and latents (0)')
    add('--workers', type=cli.number(int, 1, 1024), default=1, help='processes on this machine that train together (1)')
    add('--worker-timeout', type=cli.number(float, 0, 86_400, above=True), default=60.0, metavar='SECONDS',
        help='how long workers wait for one another (60), and ten times as long at the start')  # fmt: skip
    add('--local-batch-norm', action='store_true', help="normalise with the statistics of a worker's part of a batch")
    add('--reduce-precision', choices=PRECISIONS, default='fp32', help='of the gradients that workers send (fp32)')
    add('--run-dir', type=cli.path, help='directory of the run (runs/SYSTEM-DATE-TIME)')
    add('--resume', nargs='?', const=NEWEST, type=steps, metavar='STEP', help='go on: newest checkpoint, or STEP')
    add('--preview', action='store_true', help='show the faces on the terminal, too')
    add('--gif', action='store_true', help='only make training.gif of the grids in --run-dir')
    add('--list-systems', action='store_true', help='only print all systems, side by side')
    add('--devices', action='store_true', help='only say which devices TensorFlow sees')
    add('--sample-every', type=steps, help='steps between grids and lines of the log')
    add('--sample-epochs', type=epochs, help='the same in epochs')
    add('--evaluate-every', type=steps, help='steps between comparisons with held-out faces; the best is kept')
    add('--checkpoint-every', type=steps, help='steps between checkpoints (1000)')
    add('--keep-every', type=epochs, help='epochs between checkpoints that are never deleted')
    args = parser.parse_args(arguments)
    if args.resume and not args.run_dir:
        parser.error('--resume needs --run-dir: which run?')
    if args.gif and not args.run_dir:
        parser.error('--gif needs --run-dir: which run?')
    if args.data == '':
        parser.error('--data is empty')
    if args.sample_every and args.sample_epochs:
        parser.error('--sample-every and --sample-epochs: one of them')
    return args


def list_systems() -> str:
    """All systems side by side, a row for each of their values."""
    rows = []
    for field in System._fields:
        values = [getattr(system, field) for system in SYSTEMS.values()]
        if field in ('generator', 'discriminator'):
            for number, layers in enumerate(itertools.zip_longest(*values), 1):
                rows.append((f'{field} {number}', *(describe(layer) if layer else '' for layer in layers)))
        else:
            rows.append((field.replace('_', ' '), *('' if value is None else str(value) for value in values)))
    lines = [('', *SYSTEMS)]
    for row in rows:
        lines += itertools.zip_longest(*(textwrap.wrap(cell, CELL) for cell in row), fillvalue='')
    return '\n'.join('  '.join(cell.ljust(CELL) for cell in line).rstrip() for line in lines)


def describe(layer: Layer) -> str:
    """A layer in the words of the articles."""
    kinds = {'dense': 'dense', 'conv2d': 'convolution', 'conv2d_transpose': 'deconvolution'}
    activations = {'leaky_relu': 'leaky ReLU', 'relu': 'ReLU', 'tanh': 'tanh', None: 'linear'}
    size = f'{layer.output} {layer.kernel}x{layer.kernel}/{layer.stride} {layer.padding}'
    if layer.kind == 'dense':
        size = 'x'.join(map(str, layer.output))
    more = ['BN'] * layer.batch_norm + [activations[layer.activation]] + ['dropout'] * layer.dropout
    return f'{kinds[layer.kind]} {size}, {", ".join(more)}'


def check_settings(saved: dict):
    """Raise UserError unless the settings in run.json, `saved`, are those that flags of the same values give."""
    given = {name: value for name, value in saved.items() if value is not None and value is not False}
    flags = [flag(name) + ('' if value is True else f'={value}') for name, value in given.items()]
    try:
        settings = choose_settings(parse_arguments(flags))
        settings |= {name: saved[name] for name in ('data', 'data_dir') if isinstance(saved.get(name), str)}
        wrong = [name for name in settings | saved if name not in settings or settings[name] != saved.get(name)]
    except cli.UserError as error:
        wrong = [str(error)]
    if wrong:
        raise cli.UserError(f'the settings in run.json are damaged, or of another version: {", ".join(wrong)}')


def choose_settings(args, saved=None) -> dict:
    """The settings of the run: `saved` ones, or those of the system, and over them what `args` says.

    How long it runs is what --epochs or --steps said last. Raises UserError where `args` would change
    what a resumed run cannot change.
    """
    given = {name: value for name, value in vars(args).items() if value is not None}
    system = (saved or given).get('system', 'oreilly')
    settings = {'system': system, 'width': 1.0, 'data': 'celeba', 'data_dir': 'data'}
    settings |= {name: getattr(SYSTEMS[system], name) for name in (*sum(SCHEDULES, ()), *OVERRIDES)}
    settings |= {'seed': 0, 'evaluate_every': None, 'checkpoint_every': 1000, 'keep_every': None, 'xla': False}
    if saved is not None:
        settings = dict(saved)
        for name in ('system', 'width', 'seed', *OVERRIDES):
            if given.get(name, settings[name]) != settings[name]:
                raise cli.UserError(f'{flag(name)} is {settings[name]} in this run: leave it out, or start another run')
    for pair in SCHEDULES:
        if any(name in given for name in pair):
            settings |= dict.fromkeys(pair)
    settings |= {name: given[name] for name in settings if name in given}
    if settings['data'] not in ('celeba', 'demo'):
        settings['data'] = str(Path(settings['data']).absolute())
    settings['data_dir'] = str(Path(settings['data_dir']).absolute())
    return settings


def chosen_system(settings) -> System:
    """The system of the run, with the values that its settings override, as wide as they say."""
    system = SYSTEMS[settings['system']]._replace(**{name: settings[name] for name in OVERRIDES})
    generator, discriminator = (
        tuple(widened(layer, settings['width']) for layer in layers[:-1]) + layers[-1:]
        for layers in (system.generator, system.discriminator)
    )
    return system._replace(generator=generator, discriminator=discriminator)


def widened(layer: Layer, width) -> Layer:
    """`layer` with `width` times its channels, at least 1."""
    *shape, channels = layer.output if isinstance(layer.output, tuple) else (layer.output,)
    channels = max(1, round(channels * width))
    return layer._replace(output=(*shape, channels) if shape else channels)
