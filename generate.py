"""Draw faces with a trained generator.

python generate.py                         ten faces of 28x28 pixels, drawn by a pretrained generator
python generate.py --size 64               ten faces of 64x64 pixels
python generate.py --with Smiling Eyeglasses --without Male
python generate.py --attribute-grid 4      four faces with each attribute
python generate.py --count 1000 --seed 1 --out faces1000
python generate.py --interpolate 5         a walk through five faces; 3,8,12 instead of 5: through these
python generate.py --project photo.jpg     the face nearest to a photo, and its latent
python generate.py --latents faces/latents.npy --directions 6
python generate.py --arithmetic '3,8,12 - 5,9,1 + 7,2,4'
python generate.py --checkpoint runs/NAME  faces of your own run
"""

import contextlib
import csv
import itertools
import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

# Python leaves out this folder with -P and -I. `common` comes first, because it checks the installation.
sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import cli

# isort: split
import numpy as np

import helper
from common.files import replacing
from export.formats import FORMATS, export_generator
from export.page import export_page
from sampling import directions, pictures
from sampling.conditions import Conditions
from sampling.generator import PRETRAINED_ATTRIBUTES, PRETRAINED_BY_SIZE, Generator, restored_generator
from sampling.latents import MAX_FACES, STEPS_PER_LEG, faces_of_walk, interpolate, load_latents, sample_latents
from sampling.projection import CANDIDATES, find_photos, project, read_photo
from systems import System

MAX_GRID_FACES = 64  # faces in grid.png
MIN_GRID_SCALE, MAX_GRID_SCALE = 3, 8  # range of --scale in grids: labels need some room
MAX_STRIP_PIXELS = 1 << 26  # limit for a strip or a comparison, to save memory


@contextlib.contextmanager
def open_generator(args: Namespace, out: Path) -> Iterator[Generator]:
    """Yield the generator. Print its checkpoint, and in the end write it and the flags into `out`/generator.json."""
    with restored_generator(args.checkpoint) as generator:
        print(f'Generator: {generator.checkpoint.prefix}')
        yield generator
    # The flags that had an effect.
    names = dict.fromkeys((args.task, *TASKS[args.task][1], 'format'))
    overridden = [name for name, other in OVERRIDDEN if getattr(args, other, None) or other == f'format {args.format}']
    flags = {name.strip('_'): getattr(args, name, None) for name in names if name not in ('out', *overridden)}
    flags = {name: value for name, value in flags.items() if value not in (None, [])}
    text = json.dumps(generator.checkpoint.describe() | flags, indent=2, default=str)
    (out / 'generator.json').write_text(text + '\n')


def choose_latents(args: Namespace, generator: Generator, count: int | None = None) -> np.ndarray:
    """The first `count` latents that the flags choose, or all of them: (N, z_dim). Raises UserError."""
    system, conditions = generator.system, Conditions.of(generator.system)
    wanted = dict.fromkeys(args.with_, True) | dict.fromkeys(args.without, False)
    asked = conditions.asked(wanted)
    if args.latents:
        # Load the latents, and change what the flags ask for.
        latents = load_latents(args.latents, system.z_dim)[:count]
        latents[:, : system.latent_size] *= args.truncate
        for name, on in wanted.items():
            latents = conditions.switched(latents, name, on)
    elif args.seeds:
        rngs = map(np.random.default_rng, args.seeds[:count])
        latents = np.concatenate([sample_latents(system, rng, 1, args.truncate, asked) for rng in rngs])
    else:
        latents = sample_latents(system, np.random.default_rng(args.seed), count or args.count, args.truncate, asked)
    if count and len(latents) < count:
        source = 'latents' if args.latents else 'seeds'
        raise cli.UserError(f'the first {count} faces are needed, but --{source} has {len(latents)}')
    return latents


def check_size(args: Namespace, system: System, faces: int, scale: int) -> None:
    """Raise UserError if a picture of `faces` faces, enlarged by `scale`, would be too large."""
    if faces * math.prod(system.image_shape[:2]) * scale**2 > MAX_STRIP_PIXELS:
        remedy = 'choose --format mp4 or frames' if args.task == 'interpolate' else 'draw fewer faces, or lower --scale'
        raise cli.UserError(f'--{args.task}: more than {MAX_STRIP_PIXELS} pixels: {remedy}')


def write_faces(args: Namespace, out: Path) -> None:
    """Draw single faces, a labelled grid of the first ones, and their latents into the folder `out`."""
    with open_generator(args, out) as generator:
        latents = choose_latents(args, generator)
        faces = itertools.chain.from_iterable(generator.draw(latents, len(latents)))

        # Keep the first faces for the grid. The rest are drawn while they are written, to save memory.
        first = list(itertools.islice(faces, MAX_GRID_FACES))
        pictures.labelled_grid(first, map(str, range(len(first))), args.grid_scale).save(out / 'grid.png')
        faces = itertools.chain(first, faces)
        if args.format == 'npz':
            # An array called `arr_0`, for the evaluator of Dhariwal and Nichol (2021, arXiv:2105.05233).
            target = out / 'faces.npz'
            with replacing(target) as temporary:
                np.savez(temporary, np.fromiter(faces, np.dtype((np.uint8, first[0].shape)), len(latents)))
        else:
            # The folder has no other files, as tools that compute the FID expect.
            target = pictures.save_faces(faces, len(latents), args.scale, out / 'images')
    np.save(out / 'latents.npy', latents)
    print(f'{len(latents)} faces: {target}\nGrid: {out / "grid.png"}')


def write_interpolation(args: Namespace, out: Path) -> None:
    """Draw a closed walk through faces into the folder `out`: a GIF and a strip, an MP4 video, or PNG files."""
    ffmpeg = pictures.find_ffmpeg() if args.format == 'mp4' else ''
    columns, strip = args.frames + 1, ''
    with open_generator(args, out) as generator:
        if args.format == 'gif':
            check_size(args, generator.system, len(args.interpolate) * columns, args.scale)
        latents = choose_latents(args, generator, 1 + max(args.interpolate))[args.interpolate]
        path = interpolate(generator.system, latents, args.frames)
        faces = itertools.chain.from_iterable(generator.draw(path, len(path)))

        # Write the frames while they are drawn.
        target = out / f'walk.{args.format}'
        if args.format == 'frames':
            target = pictures.save_faces(faces, len(path), args.scale, out / 'frames', 'frame')
        elif args.format == 'mp4':
            pictures.save_mp4((pictures.enlarge(face, args.scale) for face in faces), target, args.fps, ffmpeg)
        else:
            frames = np.array(list(faces)).repeat(args.scale, axis=1).repeat(args.scale, axis=2)
            pictures.save_gif([helper.to_image(frame) for frame in frames], target, round(1000 / args.fps))
            # Each row of the strip ends with the first face of the next row, and the last row with the very first face.
            indices = np.add.outer(np.arange(0, len(frames), args.frames), np.arange(columns)) % len(frames)
            helper.images_square_grid(frames[indices.ravel()], columns=columns).save(out / 'strip.png')
            strip = f'\nFrames: {out / "strip.png"}'
    print(f'Animation through {len(args.interpolate)} faces: {target}{strip}')


def write_attribute_grid(args: Namespace, out: Path) -> None:
    """Draw a labelled grid into the folder `out`: a row for each latent, as drawn and then with each attribute."""
    with open_generator(args, out) as generator:
        names = generator.system.attributes
        if not names:
            raise cli.UserError('--attribute-grid: this generator was trained without --attributes')
        latents, conditions = choose_latents(args, generator, args.attribute_grid), Conditions.of(generator.system)
        # (N, 1 + attributes, z_dim)
        columns = np.stack([latents, *(conditions.switched(latents, name) for name in names)], axis=1)
        faces = generator.draw_all(columns.reshape(-1, latents.shape[1]))
    grid = pictures.labelled_grid(faces, ['as drawn', *names] * len(latents), args.grid_scale, 1 + len(names))
    grid.save(out / 'attributes.png')
    print(f'{len(latents)} faces with each attribute: {out / "attributes.png"}')


def write_projection(args: Namespace, out: Path) -> None:
    """Find the faces nearest to photos. Write them, their latents and a comparison into the folder `out`."""
    paths, latents, pairs, captions = find_photos(args.project), [], [], []
    with open_generator(args, out) as generator:
        photos = np.array([read_photo(path, generator.system) for path in paths])
        (out / 'images').mkdir()
        (out / 'photos.csv').write_text('face,photo,error\n')

        # Save each result as soon as it is found: the next ones may take hours.
        for index, found in enumerate(project(generator, photos, args.seed)):
            name = pictures.face_name(index, len(paths))
            pictures.enlarge(found.face, args.scale).save(out / 'images' / name)
            latents.append(found.latent)
            with replacing(out / 'latents.npy') as temporary:
                np.save(temporary, latents)
            with open(out / 'photos.csv', 'a', newline='', encoding='utf-8', errors='surrogateescape') as file:
                csv.writer(file, lineterminator='\n').writerow([name, paths[index], f'{found.distance:.1f}'])
            best = f'best of {CANDIDATES} random faces: {found.random_distance:.1f}'
            print(f'{paths[index]}: RMS error {found.distance:.1f} of 255 ({best})')
            pairs += [photos[index], found.face]
            captions += ['photo', f'off by {found.distance:.1f}']

    # Put each photo next to the face found for it.
    most = 2 * max(1, MAX_STRIP_PIXELS // (2 * pairs[0][..., 0].size * args.grid_scale**2))
    pictures.labelled_grid(pairs[:most], captions[:most], args.grid_scale, columns=2).save(out / 'comparison.png')
    some = f' of the first {most // 2}' if most < len(pairs) else ''
    print(f'Faces: {out / "images" / "face-*.png"}\nTheir photos: {out / "photos.csv"}')
    print(f'Comparison{some}: {out / "comparison.png"}\nLatents: {out / "latents.npy"}')


def write_directions(args: Namespace, out: Path) -> None:
    """Draw faces along the strongest directions into the folder `out`: a strip for each, with a row per face."""
    steps, scale = directions.STANDARD_DEVIATIONS, args.grid_scale
    with open_generator(args, out) as generator:
        system, latents = generator.system, choose_latents(args, generator)
        if args.directions > system.z_dim:
            raise cli.UserError(f'--directions: at most {system.z_dim} for this generator')
        check_size(args, system, len(latents) * len(steps), scale)
        # The strongest directions depend only on the weights of the first layer.
        strongest, fractions = directions.strongest_directions(directions.first_layer(generator), args.directions)

        captions = [f'{step:+}' if step else '0' for step in steps] * len(latents)
        for index, direction in enumerate(strongest):
            faces = generator.draw_all(directions.walk(system, latents, direction).reshape(-1, system.z_dim))
            target = out / f'direction-{index:02}.png'
            pictures.labelled_grid(faces, captions, scale, columns=len(steps)).save(target)
            print(f'{fractions[index]:.1%} of the variance: {target}')
    np.save(out / 'directions.npy', strongest)


def write_arithmetic(args: Namespace, out: Path) -> None:
    """Draw a sum of faces into the folder `out`, as Radford et al. (2015, arXiv:1511.06434, figure 7) do."""
    terms, scale = args.arithmetic, args.grid_scale
    with open_generator(args, out) as generator:
        latents = choose_latents(args, generator, 1 + max(index for _, indices in terms for index in indices))
        means, result = directions.add_up(latents, terms)
        # The seed differs from the seed of the latents: the noise would be made of the same random numbers.
        results = directions.surrounded(result, np.random.default_rng((args.seed, 1)))
        highest = max(len(results), *(len(indices) + 1 for _, indices in terms))
        check_size(args, generator.system, (len(terms) + 1) * highest, scale)

        # A column for each term, its faces above their mean.
        grids = []
        for (sign, indices), mean in zip(terms, means, strict=True):
            faces = generator.draw_all(np.vstack([latents[indices], mean]))
            captions = [*map(str, indices), '+ mean' if sign > 0 else '- mean']
            grids.append(pictures.labelled_grid(faces, captions, scale, columns=1))

        # A square with the result in the middle of faces with similar latents.
        captions = ['= result' if index == len(results) // 2 else '' for index in range(len(results))]
        grids.append(pictures.labelled_grid(generator.draw_all(results), captions, scale))
    pictures.side_by_side(grids).save(out / 'arithmetic.png')
    np.save(out / 'latents.npy', result[None])
    print(f'{out / "arithmetic.png"}\nLatent of the result: {out / "latents.npy"}')


def write_export(args: Namespace, out: Path) -> None:
    """Export the generator as the folder `out`."""
    export_generator(args.checkpoint, out, args.format)
    print(f'The generator: {out}')


def write_page(args: Namespace, out: Path) -> None:
    """Write a page that draws faces in the browser as the folder `out`."""
    export_page(args.checkpoint, out)
    print(f'Open this page in a browser: {out / "index.html"}')


LATENT_FLAGS = ('seed', 'seeds', 'latents', 'truncate', 'with_', 'without')
# Tasks by the flag that selects them ('faces' if there is none): the function, the flags that have an effect on it, and
# the values of --format, the default first.
TASKS: dict[str, tuple[Callable[[Namespace, Path], None], tuple[str, ...], tuple[str, ...]]] = {
    'faces': (write_faces, ('count', *LATENT_FLAGS, 'out', 'scale'), ('png', 'npz')),
    'interpolate': (write_interpolation, (*LATENT_FLAGS, 'frames', 'fps', 'out', 'scale'), ('gif', 'mp4', 'frames')),
    'attribute_grid': (write_attribute_grid, (*LATENT_FLAGS, 'out', 'scale'), ()),
    'project': (write_projection, ('seed', 'out', 'scale'), ()),
    'directions': (write_directions, ('count', *LATENT_FLAGS, 'out', 'scale'), ()),
    'arithmetic': (write_arithmetic, (*LATENT_FLAGS, 'out', 'scale'), ()),
    'export': (write_export, (), tuple(FORMATS)),
    'page': (write_page, (), ()),
}
# Flags, or values of --format, that have no effect if the second one is given, too.
OVERRIDDEN = (
    ('count', 'latents'), ('seed', 'latents'), ('seeds', 'latents'), ('count', 'seeds'), ('seed', 'seeds'),
    ('size', 'checkpoint'), ('scale', 'format npz'), ('fps', 'format frames'),
)  # fmt: skip
DEFAULTS = {
    'count': 10, 'seed': 0, 'seeds': [], 'truncate': 1.0, 'with_': [], 'without': [], 'scale': 1, 'size': 28,
    'frames': STEPS_PER_LEG, 'fps': 12.5,
}  # fmt: skip


def make_parser() -> cli.Parser:
    """The parser of all flags. A flag that is not given is None, so that `parse_arguments` can tell."""
    parser = cli.Parser('Draw faces with a trained generator: ten faces if no flag is given.')
    add = parser.add_argument_group('which faces').add_argument
    add('--count', type=cli.number(int, 1, MAX_FACES), help='number of faces (10)')
    add('--seed', type=cli.number(int, 0, 2**63), help='random seed of the latents (0)')
    add('--seeds', type=cli.number(int, 0, 2**63), nargs='+', metavar='N', help='the first face of each of these seeds')
    add('--latents', type=cli.path, nargs='+', metavar='FILE', help='.npy files of latents, instead of --seed, --count')
    add('--truncate', type=cli.number(float, 0, 1, exclusive=True), help='scale of the latents; < 1: typical faces (1)')
    add('--with', dest='with_', nargs='+', metavar='NAME',
        help=f'attributes that the faces have; pretrained: {", ".join(PRETRAINED_ATTRIBUTES)}')  # fmt: skip
    add('--without', nargs='+', metavar='NAME', help='attributes that the faces do not have')
    add = parser.add_argument_group('instead of single faces').add_argument
    add('--interpolate', type=faces_of_walk, metavar='N', help='walk through the first N faces, or by index: 3,8,12')
    add('--attribute-grid', type=cli.number(int, 1, 64), metavar='N', help='draw the first N faces with each attribute')
    add('--project', type=cli.path, nargs='+', metavar='PHOTO', help='find the faces nearest to photos (or in folders)')
    add('--directions', type=cli.number(int, 1, 100), metavar='N', help='vary faces along the N strongest directions')
    add('--arithmetic', type=directions.sum_of_faces, metavar='SUM', help="add mean faces: '3,8,12 - 5,9,1 + 7,2,4'")
    add = parser.add_argument_group('output').add_argument
    add('--out', type=cli.path, help='folder for the results (faces, or faces-2, ... if that exists)')
    add('--format', choices=[name for _, _, formats in TASKS.values() for name in formats], metavar='FORMAT',
        help='png (a file per face) or npz (one array); walks: gif, mp4, frames (PNG); see also --export')  # fmt: skip
    add('--frames', type=cli.number(int, 1, 10_000), help='frames of a walk from one face to the next (10)')
    add('--fps', type=cli.number(float, 1, 50), help='frames per second of a walk (12.5)')
    add('--scale', type=cli.number(int, 1, 64), help='factor by which faces are enlarged (1)')
    add = parser.add_argument_group('generator').add_argument
    add('--size', type=int, choices=PRETRAINED_BY_SIZE, help='image size of the pretrained generator: 28 or 64 (28)')
    add('--checkpoint', type=cli.path, help='your own generator: a run directory or a checkpoint in it')
    add('--export', type=cli.path, metavar='DIR',
        help=f'export the generator to this folder instead; --format: {", ".join(FORMATS)}')  # fmt: skip
    add('--page', type=cli.path, metavar='DIR', help='write a page that draws faces in the browser to this folder')
    return parser


def parse_arguments() -> Namespace:
    """Parse and check the flags, and add `task`, a name of TASKS, and `grid_scale`. Raises UserError."""
    # Find the flags that were given, and the task that they select.
    parser = make_parser()
    flags = vars(parser.parse_args())
    given = {name: value for name, value in flags.items() if value is not None}
    task = next((name for name in reversed(TASKS) if name in given), 'faces')

    # Refuse flags without an effect.
    _, effective, formats = TASKS[task]
    effective += 'size', 'checkpoint', task, *(['format'] if formats else [])
    useless = [(name, task) for name in given if name not in effective]
    useless += [pair for pair in OVERRIDDEN if set(pair) <= {*given, f'format {given.get("format")}'}]
    for pair in useless:
        name, other = (flag.strip('_').replace('_', '-') for flag in pair)
        if other == 'faces':  # no flag
            parser.error(f'--{name} requires --interpolate')
        parser.error(f'--{name} has no effect with --{other}: leave one of them out')

    # Refuse contradictions.
    args = Namespace(**dict.fromkeys(flags) | DEFAULTS | given, task=task)
    if both := set(args.with_) & set(args.without):
        parser.error(f'--with and --without both name {", ".join(sorted(both))}')
    args.format = args.format or next(iter(formats), None)
    if args.format and args.format not in formats:
        use = task if task == 'faces' else f'--{task}'
        parser.error(f'--format {args.format} is not available for {use}: choose {" or ".join(formats)}')
    args.checkpoint = args.checkpoint or PRETRAINED_BY_SIZE[args.size]
    args.grid_scale = min(max(args.scale, MIN_GRID_SCALE), MAX_GRID_SCALE)
    return args


def main() -> None:
    args = parse_arguments()
    write, *_ = TASKS[args.task]
    if args.task in ('export', 'page'):  # into its own folder, which appears when it is complete
        write(args, getattr(args, args.task))
    else:
        with cli.output_folder(args.out, 'faces') as out:
            write(args, out)


if __name__ == '__main__':
    cli.run(main)
