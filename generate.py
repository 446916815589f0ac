"""Draw faces with a trained generator.

python generate.py                         ten faces from the generator that comes with the project
python generate.py --count 1000 --seed 1 --out faces1000
python generate.py --interpolate 5         a walk from face to face
python generate.py --checkpoint runs/NAME  from a training run of your own
python generate.py --checkpoint runs/NAME --with Smiling --without Male    if it was trained with --attributes
"""

import itertools
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import helper
from common import cli
from common.files import replacing
from sampling.attributes import set_attribute
from sampling.formats import FORMATS, export_generator
from sampling.generator import PRETRAINED, draw_faces, restored_generator
from sampling.latents import STEPS_PER_LEG, interpolate, sample_latents
from sampling.page import export_page
from sampling.pictures import enlarge, label, save_gif

MAX_GRID_FACES = 64
MIN_GRID_SCALE, MAX_GRID_SCALE = 3, 8  # labels need some room
MAX_STRIP_PIXELS = 1 << 26
FRAME_MILLISECONDS = 80
FACE_FORMATS, EXPORT_FORMATS = ('png', 'npz'), tuple(FORMATS)  # the default first


def write_faces(args: Namespace, out: Path) -> None:
    """Draw single faces and a labelled grid of the first ones into the folder `out`.

    PNG files get a folder that holds nothing else, as tools that compute the FID expect. The array in an .npz file is
    called `arr_0`, as in those read by the evaluator of Dhariwal and Nichol (2021, arXiv:2105.05233).
    """
    faces = itertools.chain.from_iterable(
        draw_faces(args.checkpoint, args.count, args.seed, args.truncate, wanted(args))
    )
    first = list(itertools.islice(faces, MAX_GRID_FACES))
    scale = min(max(args.scale, MIN_GRID_SCALE), MAX_GRID_SCALE)
    labelled = [label(face, str(index), scale) for index, face in enumerate(first)]
    helper.images_square_grid(np.array(labelled)).save(out / 'grid.png')
    faces = itertools.chain(first, faces)
    if args.format == 'npz':
        target = out / 'faces.npz'
        with replacing(target) as temporary:
            np.savez(temporary, np.fromiter(faces, np.dtype((np.uint8, first[0].shape)), args.count))
    else:
        target = out / 'images' / 'face-*.png'
        target.parent.mkdir()
        for index, face in enumerate(faces):
            enlarge(face, args.scale).save(target.with_name(f'face-{index:05}.png'))
    print(f'{args.count} faces: {target}\nSide by side: {out / "grid.png"}')


def write_interpolation(args: Namespace, out: Path) -> None:
    """Draw a walk from face to face into the folder `out`: a strip with one row per leg, and a GIF."""
    columns = STEPS_PER_LEG + 1
    with restored_generator(args.checkpoint, wanted(args)) as generator:
        height, width, _ = generator.system.image_shape
        if args.interpolate * columns * height * width * args.scale**2 > MAX_STRIP_PIXELS:
            raise cli.UserError(f'a strip of more than {MAX_STRIP_PIXELS} pixels: lower --interpolate or --scale')
        latents = sample_latents(generator.system, np.random.default_rng(args.seed), args.interpolate, args.truncate)
        path = interpolate(generator.system, latents)
        frames = np.concatenate(list(generator.draw(path, len(path))))
    frames = frames.repeat(args.scale, axis=1).repeat(args.scale, axis=2)
    # Each row ends with the face that the next one begins with, the last with the very first.
    indices = np.add.outer(np.arange(0, len(frames), STEPS_PER_LEG), np.arange(columns)) % len(frames)
    helper.images_square_grid(frames[indices.ravel()], columns=columns).save(out / 'strip.png')
    save_gif([helper.to_image(frame) for frame in frames], out / 'walk.gif', FRAME_MILLISECONDS)
    print(f'A walk through {args.interpolate} faces: {out / "walk.gif"}\nStep by step: {out / "strip.png"}')


def write_attribute_grid(args: Namespace, out: Path) -> None:
    """Draw a labelled grid into the folder `out`: a row for each latent, as drawn and then with each attribute."""
    count = args.attribute_grid
    with restored_generator(args.checkpoint, wanted(args)) as generator:
        system = generator.system
        if not system.attributes:
            raise cli.UserError('this generator was trained without --attributes: there is nothing to show')
        latents = sample_latents(system, np.random.default_rng(args.seed), count, args.truncate)
        columns = [latents, *(set_attribute(system, latents, attribute) for attribute in system.attributes)]
        faces = np.concatenate(list(generator.draw(np.concatenate(columns), count * len(columns))))
    scale = min(max(args.scale, MIN_GRID_SCALE), MAX_GRID_SCALE)
    captions = np.repeat(['as drawn', *system.attributes], count)
    labelled = np.array([label(face, caption, scale) for face, caption in zip(faces, captions, strict=True)])
    rows = np.arange(len(faces)).reshape(-1, count).T.ravel()
    helper.images_square_grid(labelled[rows], columns=len(columns)).save(out / 'attributes.png')
    print(f'{count} faces with each attribute: {out / "attributes.png"}')


def write_export(args: Namespace, out: Path) -> None:
    """Write only the generator, without what training needs, as the folder `out`."""
    export_generator(args.checkpoint, out, args.format)
    print(f'The generator: {out}')


def write_page(args: Namespace, out: Path) -> None:
    """Write a page that draws faces in the browser as the folder `out`."""
    export_page(args.checkpoint, out)
    print(f'The page, to be opened in a browser: {out / "index.html"}')


def wanted(args: Namespace) -> dict[str, bool]:
    """The attributes that faces are to have or not to have, by name."""
    return dict.fromkeys(getattr(args, 'with'), True) | dict.fromkeys(args.without, False)


class Task(NamedTuple):
    """Something to do other than drawing single faces."""

    write: Callable[[Namespace, Path], None]  # does it, into a folder
    flags: tuple[str, ...]  # that have an effect on it


# By the flag that asks for it.
TASKS = {
    'interpolate': Task(write_interpolation, ('seed', 'truncate', 'with', 'without', 'out', 'scale')),
    'attribute_grid': Task(write_attribute_grid, ('seed', 'truncate', 'with', 'without', 'out', 'scale')),
    'export': Task(write_export, ('format',)),
    'page': Task(write_page, ()),
}


def parse_arguments() -> Namespace:
    """Parse the flags, and name the task in `task`: None for single faces. Raises UserError."""
    parser = cli.Parser('Draw faces with a trained generator: ten of them without any flag.')
    add = parser.add_argument_group('which generator').add_argument
    add('--checkpoint', type=cli.path, default=PRETRAINED, help='a run directory or a checkpoint in it (pretrained)')
    add = parser.add_argument_group('which faces').add_argument
    add('--count', type=cli.number(int, 1, 1_000_000), default=10, help='how many faces (10)')
    add('--seed', type=cli.number(int, 0, 2**63), default=0, help='another seed draws other faces (0)')
    add('--truncate', type=cli.number(float, 0, 1, exclusive=True), default=1.0, help='< 1: more typical, less varied')
    add('--with', nargs='+', default=[], metavar='NAME', help='faces with these attributes, which it was trained on')
    add('--without', nargs='+', default=[], metavar='NAME', help='faces without these attributes')
    add = parser.add_argument_group('where to, and how').add_argument
    add('--out', type=cli.path, help='folder for the results (faces, or faces-2, ... if that exists)')
    add('--format', choices=FACE_FORMATS + EXPORT_FORMATS, metavar='FORMAT',
        help='png or npz: one file per face, or one array of all (png); for others see --export')  # fmt: skip
    add('--scale', type=cli.number(int, 1, 64), default=1, help='enlarge each pixel this many times (1)')
    add = parser.add_argument_group('instead of single faces').add_argument
    add('--interpolate', type=cli.number(int, 2, 1000), metavar='N', help='a walk through the first N faces')
    add('--attribute-grid', type=cli.number(int, 1, 64), metavar='N', help='the first N faces with each attribute')
    add = parser.add_argument_group('the generator itself, to use elsewhere').add_argument
    add('--export', type=cli.path, metavar='DIR',
        help='draw nothing: write only the generator, into this folder; '
        f'--format is {", ".join(EXPORT_FORMATS[1:])} or {EXPORT_FORMATS[0]} (the default)')  # fmt: skip
    add('--page', type=cli.path, metavar='DIR', help='write a page that draws faces in the browser, into this folder')
    args = parser.parse_args()
    args.task = next((name for name in reversed(TASKS) if getattr(args, name)), None)
    effective = ('checkpoint', args.task, *TASKS[args.task].flags) if args.task else vars(args)
    for name, value in vars(args).items():
        if name not in (*effective, 'task') and value != parser.get_default(name):
            name, task = (each.replace('_', '-') for each in (name, args.task))
            parser.error(f'--{name} has no effect with --{task}: leave one of them out')
    if both := set(getattr(args, 'with')) & set(args.without):
        parser.error(f'--with and --without both name {", ".join(sorted(both))}')
    formats = EXPORT_FORMATS if args.task == 'export' else FACE_FORMATS
    args.format = args.format or formats[0]
    if args.format not in formats:
        parser.error(
            f'--format {args.format} is not for {"--export" if args.task else "faces"}: {" or ".join(formats)}'
        )
    if args.format == 'npz' and args.scale != 1:
        parser.error('--scale has no effect with --format npz: leave one of them out')
    return args


def main() -> None:
    args = parse_arguments()
    if args.task in ('export', 'page'):  # into its own folder, which appears once it is complete
        TASKS[args.task].write(args, getattr(args, args.task))
        return
    with cli.output_folder(args.out, 'faces') as out:
        (TASKS[args.task].write if args.task else write_faces)(args, out)


if __name__ == '__main__':
    cli.run(main)
