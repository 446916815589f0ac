"""Draw faces with a trained generator.

python generate.py                         ten faces of 28x28 pixels from a generator that comes with the project
python generate.py --size 64               of 64x64, from another
python generate.py --count 1000 --seed 1 --out faces1000
python generate.py --interpolate 5         a walk from face to face
python generate.py --project photo.jpg     the face that is nearest to a photo, and its latent
python generate.py --latents faces/latents.npy --directions 6
python generate.py --arithmetic '3,8,12 - 5,9,1 + 7,2,4'
python generate.py --checkpoint runs/NAME  from a training run of your own
python generate.py --checkpoint runs/NAME --with Smiling --without Male    if it was trained with --attributes
"""

import itertools
import math
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import helper
from common import cli
from common.files import replacing
from export.formats import FORMATS, export_generator
from export.page import export_page
from sampling import directions
from sampling.conditions import set_attribute
from sampling.generator import PRETRAINED_BY_SIZE, Generator, restored_generator
from sampling.latents import STEPS_PER_LEG, interpolate, load_latents, sample_latents
from sampling.pictures import enlarge, label, save_gif, side_by_side
from sampling.projection import CANDIDATES, project
from systems import System

MAX_GRID_FACES = 64
MIN_GRID_SCALE, MAX_GRID_SCALE = 3, 8  # labels need some room
MAX_STRIP_PIXELS = 1 << 26
MAX_INDEX = 999_999  # of a face
FRAME_MILLISECONDS = 80
FACE_FORMATS, EXPORT_FORMATS = ('png', 'npz'), tuple(FORMATS)  # the default first


def choose_latents(args: Namespace, generator: Generator, count: int | None = None) -> np.ndarray:
    """The latents of the first `count` faces that the flags ask for, or of all: (N, z_dim). Raises UserError."""
    system = generator.system
    if not args.latents:
        return sample_latents(system, np.random.default_rng(args.seed), count or args.count, args.truncate)
    latents = load_latents(args.latents, system.z_dim)[:count]
    if count and len(latents) < count:
        raise cli.UserError(f'the first {count} faces are needed, and --latents has {len(latents)}')
    latents[:, : system.latent_size] *= args.truncate
    for name in getattr(args, 'with'):
        latents = set_attribute(system, latents, name)
    for name in args.without:
        latents[:, system.latent_size + system.attributes.index(name)] = -1
    return latents


def grid_scale(args: Namespace) -> int:
    """How many times to enlarge labelled faces."""
    return min(max(args.scale, MIN_GRID_SCALE), MAX_GRID_SCALE)


def check_size(args: Namespace, system: System, faces: int, scale: int) -> None:
    """Raise UserError if a picture of so many faces, enlarged `scale` times, would be too large."""
    if faces * math.prod(system.image_shape[:2]) * scale**2 > MAX_STRIP_PIXELS:
        remedy = 'ask for fewer faces or a lower --scale'
        raise cli.UserError(f'--{args.task}: a picture of more than {MAX_STRIP_PIXELS} pixels: {remedy}')


def save_faces(faces, scale: int, out: Path) -> Path:
    """Save single faces, which get a folder that holds nothing else, as tools that compute the FID expect."""
    target = out / 'images' / 'face-*.png'
    target.parent.mkdir()
    for index, face in enumerate(faces):
        enlarge(face, scale).save(target.with_name(f'face-{index:05}.png'))
    return target


def write_faces(args: Namespace, out: Path) -> None:
    """Draw single faces, a labelled grid of the first ones, and their latents into the folder `out`.

    The array in an .npz file is called `arr_0`, as in those read by the evaluator of Dhariwal and Nichol (2021,
    arXiv:2105.05233).
    """
    with restored_generator(args.checkpoint, wanted(args)) as generator:
        latents = choose_latents(args, generator)
        faces = itertools.chain.from_iterable(generator.draw(latents, len(latents)))
        first = list(itertools.islice(faces, MAX_GRID_FACES))
        labelled = [label(face, str(index), grid_scale(args)) for index, face in enumerate(first)]
        helper.images_square_grid(np.array(labelled)).save(out / 'grid.png')
        faces = itertools.chain(first, faces)
        if args.format == 'npz':
            target = out / 'faces.npz'
            with replacing(target) as temporary:
                np.savez(temporary, np.fromiter(faces, np.dtype((np.uint8, first[0].shape)), len(latents)))
        else:
            target = save_faces(faces, args.scale, out)
    np.save(out / 'latents.npy', latents)
    print(f'{len(latents)} faces: {target}\nSide by side: {out / "grid.png"}')


def write_interpolation(args: Namespace, out: Path) -> None:
    """Draw a walk from face to face into the folder `out`: a strip with one row per leg, and a GIF."""
    columns = STEPS_PER_LEG + 1
    with restored_generator(args.checkpoint, wanted(args)) as generator:
        check_size(args, generator.system, args.interpolate * columns, args.scale)
        latents = choose_latents(args, generator, args.interpolate)
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
        latents = choose_latents(args, generator, count)
        columns = [latents, *(set_attribute(system, latents, attribute) for attribute in system.attributes)]
        faces = np.concatenate(list(generator.draw(np.concatenate(columns), count * len(columns))))
    captions = np.repeat(['as drawn', *system.attributes], count)
    labelled = np.array([label(face, caption, grid_scale(args)) for face, caption in zip(faces, captions, strict=True)])
    rows = np.arange(len(faces)).reshape(-1, count).T.ravel()
    helper.images_square_grid(labelled[rows], columns=len(columns)).save(out / 'attributes.png')
    print(f'{count} faces with each attribute: {out / "attributes.png"}')


def write_projection(args: Namespace, out: Path) -> None:
    """Write the latents whose faces are nearest to photos into the folder `out`, the faces, and both side by side."""
    with restored_generator(args.checkpoint) as generator:
        photos = np.array([read_photo(path, generator.system) for path in args.project])
        found = list(project(generator, photos, args.seed))
    np.save(out / 'latents.npy', [each.latent for each in found])
    target = save_faces([each.face for each in found], args.scale, out)
    pairs = [
        label(image, caption, grid_scale(args))
        for photo, each in zip(photos, found, strict=True)
        for image, caption in ((photo, 'photo'), (each.face, f'off by {each.distance:.1f}'))
    ]
    helper.images_square_grid(np.array(pairs), columns=2).save(out / 'comparison.png')
    for path, each in zip(args.project, found, strict=True):
        found_at = f'{each.distance:.1f} of 255 from the face found'
        print(f'{path}: {found_at}, {each.random_distance:.1f} from the nearest of {CANDIDATES} random ones')
    print(f'Faces: {target}\nBeside the photos: {out / "comparison.png"}\nLatents: {out / "latents.npy"}')


def read_photo(path: Path, system: System) -> np.ndarray:
    """The picture in a file as networks of `system` are shown it: uint8 (H, W, C). Raises UserError."""
    height, width, channels = system.image_shape
    try:
        return helper.get_image(path, width, height, system.crop, channels)
    except Exception as error:  # a broken image makes Pillow raise nearly anything
        raise cli.UserError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}') from None


def write_directions(args: Namespace, out: Path) -> None:
    """Draw faces along the strongest directions into the folder `out`: a strip for each, with a row per face."""
    with restored_generator(args.checkpoint, wanted(args)) as generator:
        system, latents = generator.system, choose_latents(args, generator)
        if args.directions > system.z_dim:
            raise cli.UserError(f'latents of {system.z_dim} values have no more directions: lower --directions')
        columns, scale = len(directions.STANDARD_DEVIATIONS), grid_scale(args)
        check_size(args, system, len(latents) * columns, scale)
        strongest, fractions = directions.strongest_directions(directions.first_layer(generator), args.directions)
        for index, direction in enumerate(strongest):
            path = directions.walk(system, latents, direction).reshape(-1, system.z_dim)
            faces = np.concatenate(list(generator.draw(path, len(path))))
            captions = [f'{steps:+}' if steps else '0' for steps in directions.STANDARD_DEVIATIONS] * len(latents)
            labelled = [label(face, caption, scale) for face, caption in zip(faces, captions, strict=True)]
            target = out / f'direction-{index:02}.png'
            helper.images_square_grid(np.array(labelled), columns=columns).save(target)
            print(f'{fractions[index]:.1%} of the variance: {target}')
    np.save(out / 'directions.npy', strongest)


def write_arithmetic(args: Namespace, out: Path) -> None:
    """Draw a sum of faces into the folder `out`, as Radford et al. (2015, arXiv:1511.06434, figure 7) do.

    Each term is a column of faces above their mean. The result is in the middle of faces with latents near to its own.
    """
    scale = grid_scale(args)
    with restored_generator(args.checkpoint, wanted(args)) as generator:
        latents = choose_latents(args, generator, 1 + max(index for _, indices in args.arithmetic for index in indices))
        means, result = directions.add_up(latents, args.arithmetic)
        groups, captions = [], []
        for (sign, indices), mean in zip(args.arithmetic, means, strict=True):
            groups.append(np.vstack([latents[indices], mean]))
            captions += [*map(str, indices), '+ mean' if sign > 0 else '- mean']
        # Not the seed alone: the noise would be that which the latents are.
        groups.append(directions.surrounded(result, np.random.default_rng((args.seed, 1))))
        captions += [*[''] * 4, '= result', *[''] * 4]
        check_size(args, generator.system, len(groups) * max(map(len, groups)), scale)
        faces = itertools.chain.from_iterable(generator.draw(np.concatenate(groups), len(captions)))
        labelled = np.array([label(face, caption, scale) for face, caption in zip(faces, captions, strict=True)])
    *terms, results = np.split(labelled, np.cumsum([len(group) for group in groups[:-1]]))
    grids = [helper.images_square_grid(term, columns=1) for term in terms] + [helper.images_square_grid(results)]
    side_by_side(grids).save(out / 'arithmetic.png')
    np.save(out / 'latents.npy', result[None])
    print(f'{out / "arithmetic.png"}\nLatent of the result: {out / "latents.npy"}')


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


FACES = 'seed', 'latents', 'truncate', 'with', 'without'  # flags that choose faces
# By the flag that asks for it.
TASKS = {
    'interpolate': Task(write_interpolation, (*FACES, 'out', 'scale')),
    'attribute_grid': Task(write_attribute_grid, (*FACES, 'out', 'scale')),
    'project': Task(write_projection, ('seed', 'out', 'scale')),
    'directions': Task(write_directions, ('count', *FACES, 'out', 'scale')),
    'arithmetic': Task(write_arithmetic, (*FACES, 'out', 'scale')),
    'export': Task(write_export, ('format',)),
    'page': Task(write_page, ()),
}


def sum_of_faces(text: str) -> list[tuple[int, list[int]]]:
    """An argparse type: '3,8 - 5,9' as [(1, [3, 8]), (-1, [5, 9])], the sign and the indices of each term."""
    index = cli.number(int, 0, MAX_INDEX)
    start, *rest = re.split(r'([+-])', text)
    pieces = rest if not start.strip() and rest else ['+', start, *rest]
    try:
        return [
            (-1 if sign == '-' else 1, [index(each.strip()) for each in term.split(',')])
            for sign, term in zip(pieces[::2], pieces[1::2], strict=True)
        ]
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error}; write it as in '3,8,12 - 5,9,1 + 7,2,4'") from None


def parse_arguments() -> Namespace:
    """Parse the flags, and name the task in `task`: None for single faces. Raises UserError."""
    parser = cli.Parser('Draw faces with a trained generator: ten of them without any flag.')
    add = parser.add_argument_group('which faces').add_argument
    add('--count', type=cli.number(int, 1, MAX_INDEX + 1), default=10, help='how many faces (10)')
    add('--seed', type=cli.number(int, 0, 2**63), default=0, help='another seed draws other faces (0)')
    add('--latents', type=cli.path, nargs='+', metavar='FILE', help='the faces of these latents.npy, not of a seed')
    add('--truncate', type=cli.number(float, 0, 1, exclusive=True), default=1.0, help='< 1: more typical, less varied')
    add(
        '--with', nargs='+', default=[], metavar='NAME', help='faces with these attributes, if it was trained with them'
    )
    add('--without', nargs='+', default=[], metavar='NAME', help='faces without these attributes')
    add = parser.add_argument_group('instead of single faces').add_argument
    add('--interpolate', type=cli.number(int, 2, 1000), metavar='N', help='a walk through the first N faces')
    add('--attribute-grid', type=cli.number(int, 1, 64), metavar='N', help='the first N faces with each attribute')
    add('--project', type=cli.path, nargs='+', metavar='PHOTO', help='the faces nearest to photos, and their latents')
    add('--directions', type=cli.number(int, 1, 100), metavar='N', help='the faces along the N strongest directions')
    add('--arithmetic', type=sum_of_faces, metavar='SUM',
        help="a sum of faces by their index, each term a mean: '3,8,12 - 5,9,1 + 7,2,4'")  # fmt: skip
    add = parser.add_argument_group('where to, and how').add_argument
    add('--out', type=cli.path, help='folder for the results (faces, or faces-2, ... if that exists)')
    add('--format', choices=FACE_FORMATS + EXPORT_FORMATS, metavar='FORMAT',
        help='png or npz: one file per face, or one array of all (png); for others see --export')  # fmt: skip
    add('--scale', type=cli.number(int, 1, 64), default=1, help='enlarge each pixel this many times (1)')
    add = parser.add_argument_group('the generator').add_argument
    add('--size', type=int, choices=PRETRAINED_BY_SIZE, default=28, help='of a pretrained one: side of its faces (28)')
    add('--checkpoint', type=cli.path, help='a run directory or a checkpoint in it, instead of a pretrained one')
    add('--export', type=cli.path, metavar='DIR',
        help='draw nothing: write only the generator, to use elsewhere, into this folder; '
        f'--format is {", ".join(EXPORT_FORMATS[1:])} or {EXPORT_FORMATS[0]} (the default)')  # fmt: skip
    add('--page', type=cli.path, metavar='DIR', help='write a page that draws faces in the browser, into this folder')
    args = parser.parse_args()
    args.task = next((name for name in reversed(TASKS) if getattr(args, name)), None)
    reasons: dict[str, str] = {}  # why a flag has no effect
    if args.task:
        effective = ('size', 'checkpoint', 'task', args.task, *TASKS[args.task].flags)
        reasons |= {name: args.task for name in vars(args) if name not in effective}
    if args.latents:
        reasons |= {'count': 'latents', 'seed': 'latents'}
    if args.checkpoint:
        reasons |= {'size': 'checkpoint'}
    if args.format == 'npz':
        reasons |= {'scale': 'format npz'}
    for name, reason in reasons.items():
        if getattr(args, name) != parser.get_default(name):
            name, reason = (each.replace('_', '-') for each in (name, reason))
            parser.error(f'--{name} has no effect with --{reason}: leave one of them out')
    if both := set(getattr(args, 'with')) & set(args.without):
        parser.error(f'--with and --without both name {", ".join(sorted(both))}')
    formats = EXPORT_FORMATS if args.task == 'export' else FACE_FORMATS
    args.checkpoint = args.checkpoint or PRETRAINED_BY_SIZE[args.size]
    args.format = args.format or formats[0]
    if args.format not in formats:
        parser.error(
            f'--format {args.format} is not for {"--export" if args.task else "faces"}: {" or ".join(formats)}'
        )
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
