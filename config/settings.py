"""The settings of a run, one table: its flags, defaults, checks, and what older runs meant follow from it."""

import itertools
import math
import os
import shlex
import textwrap
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator
from dataclasses import fields, replace

from common import cli
from config.flags import absolute, add_flag, data_source, flag, is_valid
from config.sizes import image_size, resized
from dataset.split import HOLD_OUTS
from graph.session import has_fast_bfloat16
from systems import EPOCHS, STEPS, SYSTEMS, Layer, Setting, System

NEWEST = math.inf  # in place of a step: the newest checkpoint
GROUPS = ('data', 'networks', 'objective', 'training', 'schedule', 'run', 'device', 'workers')  # of `--help`

# Settings that override a value of the system.
OVERRIDES: dict[str, Setting] = {each.name: each.metadata['setting'] for each in fields(System) if each.metadata}
# Settings that affect the training, and that a resumed run may change: run.json has the step of each change.
RECORDED = [name for name, setting in OVERRIDES.items() if setting.changeable and setting.group != 'schedule']
# All settings, as in run.json.
SETTINGS = {
    'data': Setting('celeba', data_source, 'data', changeable=True, path=True,
        help='celeba (downloaded), demo, or the path of a zip or folder of images'),
    'data_dir': Setting('data', absolute, 'data', changeable=True, path=True,
        help='folder for downloads and prepared faces'),
    'hold_out': Setting(None, tuple(HOLD_OUTS), 'data', older='images',
        help='keep every tenth image, or person, from training for comparison '
        '(default: none; with --evaluate-every people if known, else images)'),
    'attributes': Setting([], list, 'data', 'condition the generator on these, as in: Smiling Male', older=[]),
    'attribute_table': Setting(None, absolute, 'data', changeable=True, path=True, older=None,
        help='table of image attributes (default: list_attr_celeba.txt next to the data)'),
    'system': Setting('oreilly', tuple(SYSTEMS), 'networks', 'article whose networks and settings to use'),
    'image_size': Setting(None, image_size, 'networks', 'side of the images in pixels, or HEIGHTxWIDTH', older=None),
    'width': Setting(1.0, cli.number(float, 0, 16, exclusive=True), 'networks',
        'multiply the channels of all hidden layers by X'),
    'init_from': Setting(None, absolute, 'networks', 'initialise from this run or checkpoint', path=True, older=None),
    'checkpoint_every': Setting(1000, STEPS, 'schedule', 'steps between checkpoints', changeable=True),
    'keep_every': Setting(None, EPOCHS, 'schedule', changeable=True,
        help='epochs between checkpoints that are never deleted (default: a tenth of all epochs)'),
    'evaluate_every': Setting(None, STEPS, 'schedule', changeable=True, older=None,
        help='steps between comparisons with held-out faces; keeps the best checkpoint (default: never)'),
    'seed': Setting(0, cli.number(int, 0, 2**31 - 1), 'run', 'seed of weights, data order and latents'),
    'xla': Setting(None, bool, 'device', changeable=True,
        help='compile with XLA (default: on a GPU what a measurement finds faster, on a CPU off)'),
    'steps_per_call': Setting(None, cli.number(int, 1, 10_000), 'device', changeable=True, older=None,
        help='maximum number of steps per session.run call, changes no result (default: 1 on a CPU, 100 on a GPU)'),
    'deterministic': Setting(False, bool, 'device', changeable=True, older=False,
        help='make a GPU give the same result each time, more slowly (default: off)'),
    'local_batch_norm': Setting(False, bool, 'workers', older=False,
        help="normalise each worker's part of a batch with its own statistics (default: off)"),
    **OVERRIDES,
}  # fmt: skip
PATHS = [name for name, setting in SETTINGS.items() if setting.path]
# Settings that older runs lack, with the value that keeps such a run as it was.
ADDED = {name: setting.older for name, setting in SETTINGS.items() if setting.older is not ...}
# Settings that only older runs have, with the one value that is still supported.
RETIRED = {'spectral_norm': False, 'reduce_precision': 'fp32', 'objective': 'standard'}
# Pairs of settings, in epochs and in steps.
SCHEDULES = (('epochs', 'steps'), ('sample_every', 'sample_epochs'))


def parse_arguments(arguments: list[str] | None = None) -> Namespace:
    """Parse the flags of `train.py`, from the command line unless `arguments` are given. Raises UserError."""
    parser = cli.Parser('Train a DCGAN to draw faces. Defaults that are not shown depend on --system: --list-systems.')
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for name, setting in SETTINGS.items():
        add_flag(groups[setting.group], name, setting, shows_default=name not in OVERRIDES)
    parser.set_defaults(data_dir=absolute('data'))  # also if a run is resumed, perhaps on another machine

    # The flags that are not kept in run.json.
    add = groups['data'].add_argument
    add('--more-images', action='store_true', help='resume although images were added to the data set')
    add('--sources', nargs='+', metavar='URL', help='download CelebA from these URLs instead, tried in order')
    add = groups['run'].add_argument
    add('--run-dir', type=cli.path, metavar='PATH', help='directory of the run (default: runs/SYSTEM-DATE-TIME)')
    add('--resume', nargs='?', const=NEWEST, type=resume_step, metavar='STEP',
        help='resume the run in --run-dir from its newest checkpoint, or from the checkpoint of STEP; '
        'start it if it does not exist')  # fmt: skip
    add('--gif', action='store_true', help='only make training.gif from the sample grids in --run-dir')
    add('--list-systems', action='store_true', help='only print all systems side by side')
    add = groups['device'].add_argument
    add('--devices', action='store_true', help='only print the devices that TensorFlow finds')
    add = groups['workers'].add_argument
    add('--workers', type=cli.number(int, 1, 1024), default=1, metavar='N',
        help='processes on this machine that train together (default: 1)')  # fmt: skip
    add('--worker-timeout', type=cli.number(float, 0, 86_400, exclusive=True), default=60.0, metavar='SECONDS',
        help='silence after which a worker counts as lost, 10 times as long at the start (default: 60)')  # fmt: skip

    args = parser.parse_args(arguments)
    for name in ('resume', 'gif'):
        if getattr(args, name) and not args.run_dir:
            parser.error(f'--{name} requires --run-dir')
    return args


def resume_step(text: str) -> int:
    """An argparse type: the step of a checkpoint. Names the right flag if it is a path."""
    if '/' in text or (text and os.path.exists(text) and not text.isdecimal()):
        raise ArgumentTypeError(f'{text!r} is a path, not a step: use --resume --run-dir {shlex.quote(text)}')
    return STEPS(text)


def choose_settings(args: Namespace, saved: dict | None = None) -> dict:
    """The settings of a new run, or of one that is resumed with the settings `saved`, with the flags `args`.

    A precision 'auto' is resolved. Raises UserError if the settings contradict each other, or `saved` ones that a
    resumed run cannot change.
    """
    given = {name: value for name, value in vars(args).items() if name in SETTINGS and value is not None}
    if saved is None:
        settings = default_settings(given.get('system', SETTINGS['system'].default))
    else:
        settings = resumed_settings(saved, given)

    # Of two settings in SCHEDULES, a flag for one unsets the other.
    for pair in SCHEDULES:
        if any(name in given for name in pair):
            settings |= dict.fromkeys(pair)
    settings |= given
    if settings['precision'] == 'auto':
        settings['precision'] = saved['precision'] if saved else 'bf16' if has_fast_bfloat16() else 'fp32'

    for message in contradictions(settings):
        raise cli.UserError(message)
    return settings


def default_settings(name: str) -> dict:
    """The settings of a run of the system `name` without other flags."""
    system = SYSTEMS[name]
    defaults = {each: setting.default for each, setting in SETTINGS.items()}
    return defaults | {'system': name} | {each: getattr(system, each) for each in OVERRIDES}


def resumed_settings(saved: dict, given: dict) -> dict:
    """A copy of the settings `saved`. Raises UserError if the flags `given` would change what a resumed run cannot."""
    for name, value in given.items():
        if SETTINGS[name].changeable or value == saved[name] or (name, value) == ('precision', 'auto'):
            continue
        was = 'not set' if saved[name] is None else saved[name]
        raise cli.UserError(f'{flag(name)} is {was} in this run: leave it out, or start a new run with --init-from')
    return dict(saved)


def contradictions(settings: dict) -> Iterator[str]:
    """Yield a line for each contradiction in `settings`. Raises UserError if networks cannot have the image size."""
    # Schedule.
    if not settings['epochs'] and not settings['steps']:
        yield '--epochs or --steps is required'
    if bool(settings['sample_every']) == bool(settings['sample_epochs']):
        yield '--sample-every and --sample-epochs: use one of them'

    # Attributes.
    if len(set(settings['attributes'])) < len(settings['attributes']):
        yield '--attributes: a name is given twice'
    if settings['attribute_table'] and not settings['attributes']:
        yield '--attribute-table requires --attributes'

    # Frozen layers.
    layers = len(system_of(settings).discriminator)
    if settings['freeze_discriminator'] >= layers:
        yield f'--freeze-discriminator: at most {layers - 1} of {layers} layers'
    if settings['freeze_discriminator'] and not settings['init_from']:
        yield '--freeze-discriminator requires --init-from (otherwise random layers would be frozen)'

    # Augmentation.
    if settings['augment_target'] and settings['augment'] == 'none':
        yield '--augment-target requires --augment'


def read_settings(saved: dict) -> dict:
    """The settings in run.json, `saved`, completed if an older version wrote them. Raises UserError if they are damaged
    or no longer supported.
    """
    # Names.
    odd = {
        'unknown': saved.keys() - SETTINGS.keys() - RETIRED.keys(),
        'missing': SETTINGS.keys() - saved.keys() - ADDED.keys(),
    }
    if wrong := '; '.join(f'{what}: {", ".join(sorted(names))}' for what, names in odd.items() if names):
        raise cli.UserError(f'the settings in run.json are damaged, or of a newer version; {wrong}')

    # Values of older versions.
    for name, value in saved.items():
        if name in RETIRED and value != RETIRED[name]:
            raise cli.UserError(f'the run was made with {flag(name)} {value}, which is no longer supported')
    settings = ADDED | {name: value for name, value in saved.items() if name in SETTINGS}

    # Values.
    invalid = [flag(name) for name, value in settings.items() if not is_valid(SETTINGS[name], value)]
    if settings['precision'] == 'auto':  # which is resolved before a run is saved
        invalid.append('--precision')
    try:
        wrong = ', '.join(invalid or contradictions(settings))
    except cli.UserError as error:
        wrong = str(error)
    if wrong:
        raise cli.UserError(f'the settings in run.json are damaged: {wrong}')
    return settings


def system_of(settings: dict) -> System:
    """The system of a run: for its image size, as wide as --width, and with the values that its settings override."""
    system = SYSTEMS[settings['system']]
    system = resized(system, settings['image_size'] or system.image_size, settings['channels'])
    generator, discriminator = (
        tuple(widened(layer, settings['width']) for layer in layers[:-1]) + layers[-1:]
        for layers in (system.generator, system.discriminator)
    )
    attributes, overridden = tuple(settings['attributes']), {name: settings[name] for name in OVERRIDES}
    return replace(system, generator=generator, discriminator=discriminator, attributes=attributes, **overridden)


def widened(layer: Layer, width: float) -> Layer:
    """`layer` with `width` times its channels, at least 1."""
    return layer.with_channels(max(1, round(layer.channels * width)))


def list_systems() -> str:
    """All systems next to one another, with a row for each layer and each of the other values."""
    rows = [['', *SYSTEMS]]
    for name in (each.name for each in fields(System)):
        values = [getattr(system, name) for system in SYSTEMS.values()]
        if name in ('generator', 'discriminator'):
            layers = enumerate(itertools.zip_longest(*values), 1)
            rows += [[f'{name} {number}', *map(describe, row)] for number, row in layers]
        elif any(value != () for value in values):
            rows.append([name.replace('_', ' '), *('' if value is None else str(value) for value in values)])

    # A cell has as many lines as its text needs at 24 columns, a row as many as its longest cell.
    wrapped = [[textwrap.wrap(cell, 24) for cell in row] for row in rows]
    lines = [line for row in wrapped for line in itertools.zip_longest(*row, fillvalue='')]
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
