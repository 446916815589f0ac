"""What does a training run do? The flags of train.py, and the settings that they and a system make."""

import math
from pathlib import Path

import cli
from systems import PRECISIONS, SYSTEMS, UPDATE_ORDERS, System

NEWEST = math.inf  # in place of a step: the newest checkpoint
# Values of the system that flags may override. A resumed run cannot: it would be another run.
OVERRIDES = ('batch_size', 'learning_rate', 'beta1', 'label_smoothing', 'update_order', 'ema', 'precision')


def parse_arguments(arguments=None):
    """The flags in `arguments`, those of the command line if None. Raises UserError."""
    parser = cli.Parser('Train a DCGAN to draw faces.')
    add, steps = parser.add_argument, cli.number(int, 1, 10**9)
    add('--data', help='celeba (the default, downloaded), demo, or a zip or folder of images')
    add('--data-dir', type=cli.path, default=Path('data'), help='where downloads and prepared faces are kept (data)')
    add('--sources', nargs='+', metavar='URL', help='download CelebA from here instead')
    add('--system', choices=SYSTEMS, help='whose networks and settings (oreilly)')
    add('--epochs', type=cli.number(int, 1, 1_000_000), help='passes over the data')
    add('--steps', type=steps, help='stop after so many steps in all')
    add('--batch-size', type=cli.number(int, 2, 65_536), help='images a step')
    add('--learning-rate', type=cli.number(float, 0, 1, above=True), help="Adam's, of both networks")
    add('--beta1', type=cli.number(float, 0, 0.9999), help="Adam's decay of the mean gradient")
    add('--label-smoothing', type=cli.number(float, 0.5, 1), help='the label of a real image')
    add('--update-order', choices=UPDATE_ORDERS, help='discriminator first, or both at the same point')
    add('--ema', type=cli.number(float, 0, 0.999999), help="decay of the averaged generator's weights, 0: none")
    add('--precision', choices=PRECISIONS, help='what layers compute in; weights are float32 in both (fp32)')
    add('--xla', action='store_true', default=None, help='compile the training step with XLA')
    add('--seed', type=cli.number(int, 0, 2**31 - 1), help='decides weights, order and latents (0)')
    add('--run-dir', type=cli.path, help='directory of the run (runs/SYSTEM-DATE-TIME)')
    add('--resume', nargs='?', const=NEWEST, type=steps, metavar='STEP', help='go on: newest checkpoint, or STEP')
    add('--sample-every', type=steps, help='steps between grids and lines of the log')
    add('--checkpoint-every', type=steps, help='steps between checkpoints (1000)')
    add('--keep-every', type=cli.number(int, 1, 1_000_000), help='epochs between checkpoints that are never deleted')
    args = parser.parse_args(arguments)
    if args.resume and not args.run_dir:
        parser.error('--resume needs --run-dir: which run?')
    if args.data == '':
        parser.error('--data is empty')
    return args


def check_settings(saved: dict):
    """Raise UserError unless the settings in run.json, `saved`, are those that flags of the same values give."""
    given = {name: value for name, value in saved.items() if value is not None and value is not False}
    flags = [f'--{name.replace("_", "-")}' + ('' if value is True else f'={value}') for name, value in given.items()]
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
    what a resumed run cannot change, or `saved` is damaged.
    """
    given = {name: value for name, value in vars(args).items() if value is not None}
    system = (saved or given).get('system', 'oreilly')
    settings = {'system': system, 'data': 'celeba', 'data_dir': 'data', 'steps': None}
    settings |= {name: getattr(SYSTEMS[system], name) for name in ('epochs', 'sample_every', *OVERRIDES)}
    settings |= {'seed': 0, 'checkpoint_every': 1000, 'keep_every': None, 'xla': False}
    if saved is not None:
        check_settings(saved)
        settings = dict(saved)
        for name in ('system', 'seed', *OVERRIDES):
            if given.get(name, settings[name]) != settings[name]:
                flag = '--' + name.replace('_', '-')
                raise cli.UserError(f'{flag} is {settings[name]} in this run: leave it out, or start another run')
    if 'epochs' in given or 'steps' in given:
        settings |= {'epochs': None, 'steps': None}
    settings |= {name: given[name] for name in settings if name in given}
    if settings['data'] not in ('celeba', 'demo'):
        settings['data'] = str(Path(settings['data']).absolute())
    settings['data_dir'] = str(Path(settings['data_dir']).absolute())
    return settings


def chosen_system(settings) -> System:
    """The system of the run, with the values that its settings override."""
    return SYSTEMS[settings['system']]._replace(**{name: settings[name] for name in OVERRIDES})


def length(settings, images) -> tuple[int, int]:
    """The steps of an epoch, and of the whole run."""
    epoch_steps = images // settings['batch_size']
    return epoch_steps, min(settings['steps'] or math.inf, (settings['epochs'] or math.inf) * epoch_steps)
