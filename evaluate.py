"""Measure how good and how varied generated faces are, and whether they are copies.

python evaluate.py --data PATH             the generator that comes with the project
python evaluate.py runs/NAME --data PATH   a training run of your own, with the data that it was trained on
"""

import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import helper
from common import cli
from common.files import has_files, naming, replacing, unused
from common.lazy import LazyModule
from rundir import checkpoints
from rundir.directory import read_run
from sampling import metrics
from sampling.generator import PRETRAINED, draw_faces
from sampling.pictures import LABEL_HEIGHT, label
from training.run import load_faces

figure = LazyModule('matplotlib.figure')

MAX_FACES = 4096  # generated, and held out: more would take too much time and memory
MIN_HELD_OUT = 2  # for the MS-SSIM of pairs
COLUMNS = ('drawn', 'real', 'noise')
QUANTILES = {'5 %': 0.05, 'median': 0.5}  # of the distances to training faces
NEAR = 0.01  # a face is near a training face if only this fraction of held-out faces is nearer to one
PAIRS = 16  # in each half of neighbours.png
PAIRS_PER_ROW = 4
MAX_PAIR_SIDE = 128  # pixels of an enlarged face

Measures = dict[str, dict[str, float]]
Neighbours = dict[str, tuple[np.ndarray, np.ndarray]]


def measure(
    generated: np.ndarray, faces: np.ndarray, training: np.ndarray, held_out: np.ndarray
) -> tuple[Measures, Neighbours]:
    """Measure `generated` faces, uint8 (N, H, W, 3).

    faces: all faces of the data, uint8 (M, H, W, 3). training, held_out: indices of training faces, and of N held-out
    faces.
    Returns the measures by name and column, and the nearest training faces by column, as `metrics.nearest` has them.
    The columns: `drawn`, the generated faces; `real`, held-out faces, or training faces where the measure compares
    with held-out ones; `noise`, uniform noise.
    """
    real = faces[held_out]
    noise = np.random.default_rng(0).integers(0, 256, real.shape, np.uint8)
    judged = {'drawn': generated, 'real': real, 'noise': noise}
    compared = judged | {'real': faces[metrics.subset(training, len(real))]}
    measures: Measures = {}
    for column, images in compared.items():
        for side, distance in metrics.swd(images, real).items():
            measures.setdefault(f'SWD x1000, {side}x{side}', {})[column] = distance
    measures['MS-SSIM of pairs'] = {column: metrics.mean_ms_ssim(images) for column, images in judged.items()}
    neighbours = {column: metrics.nearest(images, faces, training) for column, images in judged.items()}
    distances = {column: distance for column, (_, distance) in neighbours.items()}
    for name, quantile in QUANTILES.items():
        measures[f'distance to a training face, {name}'] = {
            column: float(np.quantile(distance, quantile)) for column, distance in distances.items()
        }
    near = np.quantile(distances['real'], NEAR)
    measures[f'nearer than {NEAR:.0%} of real faces, %'] = {
        column: 100 * float(np.mean(distance < near)) for column, distance in distances.items()
    }
    return measures, neighbours


def table(measures: Measures) -> str:
    """The measures as text, one row each."""
    width = max(map(len, measures))
    rows = [f'{"":{width}}' + ''.join(f'{column:>10}' for column in COLUMNS)]
    for name, values in measures.items():
        rows.append(f'{name:{width}}' + ''.join(f'{values[column]:10.3f}' for column in COLUMNS))
    return '\n'.join(rows)


def show_neighbours(generated: np.ndarray, nearest: np.ndarray, distances: np.ndarray) -> Image.Image:
    """Generated faces beside the nearest training faces: the first PAIRS, and the PAIRS with the smallest distances.

    generated, nearest: uint8 (N, H, W, 3). distances: (N,).
    """
    side = generated.shape[1]
    scale, gap = max(1, MAX_PAIR_SIDE // side), np.zeros((side, side // 14, 3), np.uint8)
    halves = {
        'The first faces, each beside the nearest training face:': np.arange(len(generated))[:PAIRS],
        'The faces that are nearest to a training face:': np.argsort(distances)[:PAIRS],
    }
    pictures = []
    for title, indices in halves.items():
        pairs = []
        for index in indices:
            pair = np.concatenate([generated[index], nearest[index], gap], axis=1)
            pairs.append(label(pair, f'{index}, distance {distances[index]:.1f}', scale))
        grid = helper.images_square_grid(np.array(pairs), columns=PAIRS_PER_ROW)
        picture = Image.new('RGB', (grid.width, grid.height + LABEL_HEIGHT), 'white')
        ImageDraw.Draw(picture).text((2, 1), title, fill='black')
        picture.paste(grid, (0, LABEL_HEIGHT))
        pictures.append(np.asarray(picture))
    return Image.fromarray(np.concatenate(pictures))


def plot_distances(generated: np.ndarray, real: np.ndarray, path: Path) -> None:
    """Plot how the distances of generated faces, (N,), and of real ones, (M,), are distributed, as a PNG file."""
    plot = figure.Figure(figsize=(7, 4), layout='tight')
    axes = plot.subplots()
    bins = np.linspace(0, max(1, generated.max(), real.max()), 61)
    axes.hist(real, bins, density=True, alpha=0.6, label='held-out faces')
    axes.hist(generated, bins, density=True, alpha=0.6, label='generated faces')
    axes.axvline(
        np.quantile(real, NEAR), color='black', linestyle=':', label=f'{NEAR:.0%} of held-out faces are nearer'
    )
    axes.set_xlabel('distance to the nearest training face')
    axes.set_yticks([])
    axes.legend()
    with replacing(path) as temporary:
        plot.savefig(temporary, dpi=120)


def write(out: Path, results: dict, generated: np.ndarray, faces: np.ndarray, neighbours: Neighbours) -> None:
    """Write evaluation.json, neighbours.png and distances.png into the folder `out`. See `measure`."""
    with replacing(out / 'evaluation.json') as temporary:
        temporary.write_text(json.dumps(results, indent=2) + '\n')
    indices, distances = neighbours['drawn']
    with replacing(out / 'neighbours.png') as temporary:
        show_neighbours(generated, faces[indices], distances).save(temporary)
    plot_distances(distances, neighbours['real'][1], out / 'distances.png')


def parse_arguments() -> Namespace:
    parser = cli.Parser('Measure how good and how varied generated faces are, and whether they are copies.')
    add = parser.add_argument
    add('checkpoint', nargs='?', type=cli.path, default=PRETRAINED, metavar='RUN',
        help='a run directory or a checkpoint in it (pretrained)')  # fmt: skip
    add('--data', required=True, help='the data it was trained on: celeba, demo, or a zip or folder of images')
    add('--data-dir', type=cli.path, default=Path('data'), help='where downloads and prepared faces are kept (data)')
    add('--seed', type=cli.number(int, 0, 2**63), default=0, help='another seed draws other faces (0)')
    add('--truncate', type=cli.number(float, 0, 1, exclusive=True), default=1.0,
        help='below 1: more typical, less varied')  # fmt: skip
    add('--out', type=cli.path, help='folder for the results (evaluation, or evaluation-2, ... if that exists)')
    args = parser.parse_args()
    if args.data == '':
        parser.error('--data is empty')
    return args


def main() -> None:
    args = parse_arguments()
    run_dir, checkpoint = checkpoints.find(args.checkpoint)
    run = read_run(run_dir)
    out = args.out or unused(Path('evaluation'))
    if has_files(out):
        raise cli.UserError(f'{out} is not empty: choose another folder with --out')
    dataset = helper.Dataset(load_faces(run['settings'] | {'data': args.data, 'data_dir': args.data_dir}))
    if len(dataset.held_out) < MIN_HELD_OUT:
        raise cli.UserError(
            f'{args.data} holds {len(dataset.faces)} faces, of which every {helper.HOLD_OUT}th is held out: '
            f'at least {MIN_HELD_OUT * helper.HOLD_OUT} are needed'
        )
    trained_on_these = run['data_digest'] == dataset.digest
    if not trained_on_these:
        print(
            f'Warning: {args.data} does not hold the faces that this run was trained on: '
            'held-out faces may have been used in training',
            file=sys.stderr,
        )
    held_out = metrics.subset(dataset.held_out, MAX_FACES)
    with naming(out):
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # fails now, before the work, if the folder is not writable
    generated = np.concatenate(list(draw_faces(checkpoint.prefix, len(held_out), args.seed, args.truncate)))
    print(checkpoint.prefix)
    print(
        f'Faces: {len(generated)} drawn, {len(dataset.training)} trained on, '
        f'{len(held_out)} of {len(dataset.held_out)} held out'
    )
    measures, neighbours = measure(generated, dataset.faces, dataset.training, held_out)
    results = {
        'run': run_dir.name,
        'checkpoint': checkpoint.prefix.name,
        'step': checkpoint.step,
        'seed': args.seed,
        'truncate': args.truncate,
        'data_digest': dataset.digest,
        'trained_on_these': trained_on_these,
        'faces': {'drawn': len(generated), 'trained on': len(dataset.training), 'held out': len(dataset.held_out)},
        'measures': measures,
    }
    with naming(out):
        write(out, results, generated, dataset.faces, neighbours)
    print(f'\n{table(measures)}\n\nGood faces have values like those of real ones. All results: {out}')


if __name__ == '__main__':
    cli.run(main)
