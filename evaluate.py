"""Measure how good and how varied generated faces are, and whether they are copies.

python evaluate.py --data PATH             the generator that comes with the project
python evaluate.py runs/NAME --data PATH   a training run of your own, with the data that it was trained on
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

import helper
from common import cli
from common.files import replacing
from common.lazy import LazyModule
from metrics import features
from metrics.ms_ssim import mean_ms_ssim
from metrics.nearest import nearest
from metrics.swd import subset, swd
from rundir import checkpoints
from rundir.run_json import read_run
from sampling.generator import PRETRAINED, draw_faces
from sampling.pictures import LABEL_HEIGHT, label
from training.data import choose_hold_out, load_dataset

figure = LazyModule('matplotlib.figure')

MAX_FACES = 4096  # generated, and held out: more would take too much time and memory
MIN_HELD_OUT = 2  # for the MS-SSIM of pairs
NEAR = 0.01  # a face is near a training face if only this fraction of held-out faces is nearer to one
PAIRS, PAIRS_PER_ROW = 16, 4  # in each half of neighbours.png
MAX_PAIR_SIDE = 128  # pixels of an enlarged face


def measure(generated: np.ndarray, faces: np.ndarray, training: np.ndarray, held_out: np.ndarray) -> tuple[dict, dict]:
    """Measures by name and column, and the nearest training faces by column, as `metrics.nearest.nearest` has them.

    generated, faces: generated faces, and all of the data: uint8 (N, H, W, C) and (M, H, W, C).
    training, held_out: indices of training faces, and of N held-out faces.
    The columns: `drawn`, the generated faces; `real`, held-out faces, or training faces where the measure compares
    with held-out ones; `noise`, uniform noise.
    """
    real = faces[held_out]
    noise = np.random.default_rng(0).integers(0, 256, real.shape, np.uint8)
    columns = {'drawn': generated, 'real': real, 'noise': noise}
    neighbours = {column: nearest(images, faces, training) for column, images in columns.items()}
    near = np.quantile(neighbours['real'][1], NEAR)
    real_features = features.extract(real)[0]
    measures: dict[str, dict[str, float]] = {}
    for column, images in columns.items():
        compared = faces[subset(training, len(real))] if column == 'real' else images
        values = {f'SWD x1000, {level}': distance for level, distance in swd(compared, real).items()}
        distances, known = neighbours[column][1], features.extract(compared)[0]
        values |= {
            'Fréchet distance of face features': features.frechet_distance(known, real_features),
            'precision, %': 100 * features.coverage(known, real_features),
            'recall, %': 100 * features.coverage(real_features, known),
            'MS-SSIM of pairs': mean_ms_ssim(images),
            'distance to a training face, 5 %': float(np.quantile(distances, 0.05)),
            'distance to a training face, median': float(np.quantile(distances, 0.5)),
            f'nearer than {NEAR:.0%} of real faces, %': 100 * float(np.mean(distances < near)),
        }
        for name, value in values.items():
            measures.setdefault(name, {})[column] = value
    return measures, neighbours


def table(measures: dict[str, dict[str, float]]) -> str:
    """The measures as text, one row each."""
    width = max(map(len, measures))
    rows = [' ' * width + ''.join(f'{column:>10}' for column in next(iter(measures.values())))]
    rows += [f'{name:{width}}' + ''.join(f'{value:10.3f}' for value in row.values()) for name, row in measures.items()]
    return '\n'.join(rows)


def show_neighbours(generated: np.ndarray, nearest: np.ndarray, distances: np.ndarray) -> Image.Image:
    """Faces (N, H, W, C) beside their nearest training faces: the first, and those with the smallest distances."""
    _, height, width, _ = generated.shape
    scale, halves = max(1, MAX_PAIR_SIDE // max(height, width)), []
    for title, indices in (
        ('The first faces, each beside the nearest training face:', np.arange(len(generated))[:PAIRS]),
        ('The faces that are nearest to a training face:', np.argsort(distances)[:PAIRS]),
    ):
        pairs = np.concatenate([generated[indices], nearest[indices]], axis=2)
        pairs = np.pad(pairs, ((0, 0), (0, 0), (0, width // 14), (0, 0)))  # a gap
        captions = [f'{index}, distance {distances[index]:.1f}' for index in indices]
        labelled = [label(pair, caption, scale) for pair, caption in zip(pairs, captions, strict=True)]
        grid = helper.images_square_grid(np.array(labelled), columns=PAIRS_PER_ROW)
        halves.append(ImageOps.expand(grid, (0, LABEL_HEIGHT, 0, 0), 'white'))
        ImageDraw.Draw(halves[-1]).text((2, 1), title, fill='black')
    return Image.fromarray(np.concatenate([np.asarray(half) for half in halves]))


def plot_distances(generated: np.ndarray, real: np.ndarray):
    """Plot how the distances of generated faces, (N,), and of real ones, (M,), are distributed. Returns the figure."""
    plot = figure.Figure(figsize=(7, 4), layout='tight')
    axes = plot.subplots()
    bins = np.linspace(0, max(1, generated.max(), real.max()), 61)
    axes.hist(real, bins, density=True, alpha=0.6, label='held-out faces')
    axes.hist(generated, bins, density=True, alpha=0.6, label='generated faces')
    near = np.quantile(real, NEAR)
    axes.axvline(near, color='black', linestyle=':', label=f'{NEAR:.0%} of held-out faces are nearer')
    axes.set(xlabel='distance to the nearest training face', yticks=[])
    axes.legend()
    return plot


def parse_arguments() -> Namespace:
    parser = cli.Parser('Measure how good and how varied generated faces are, and whether they are copies.')
    add = parser.add_argument
    add('checkpoint', nargs='?', type=cli.path, default=PRETRAINED, metavar='RUN',
        help='a run directory or a checkpoint in it (pretrained)')  # fmt: skip
    add('--data', required=True, help='the data it was trained on: celeba, demo, or a zip or folder of images')
    add('--data-dir', type=cli.path, default=Path('data'), help='where downloads and prepared faces are kept (data)')
    add('--seed', type=cli.number(int, 0, 2**63), default=0, help='another seed draws other faces (0)')
    add('--truncate', type=cli.number(float, 0, 1, exclusive=True), default=1.0, help='< 1: more typical, less varied')
    add('--out', type=cli.path, help='folder for the results (evaluation, or evaluation-2, ... if that exists)')
    args = parser.parse_args()
    if args.data == '':
        parser.error('--data is empty')
    return args


def main() -> None:
    args = parse_arguments()
    with cli.output_folder(args.out, 'evaluation') as out:
        evaluate(args, out)


def evaluate(args: Namespace, out: Path) -> None:
    """Evaluate as the flags say, print the measures, and write the results into the folder `out`."""
    run_dir, checkpoint = checkpoints.find(args.checkpoint)
    run = read_run(run_dir)
    settings = run['settings'] | {'data': args.data, 'data_dir': args.data_dir, 'attributes': []}
    held_out_then = settings['hold_out']
    if held_out_then != 'images':  # but nothing, or people, of whom there may be no table here
        settings['hold_out'] = choose_hold_out(settings)
    dataset = load_dataset(settings)
    if len(dataset.held_out) < MIN_HELD_OUT:
        raise cli.UserError(f'{args.data} holds {dataset}: at least {MIN_HELD_OUT} held out are needed')
    if not (trained_on_these := run['data_digest'] == dataset.digest):
        warning = f'Warning: {args.data} does not hold the faces that this run was trained on'
        print(f'{warning}: held-out faces may have been used in training', file=sys.stderr)
    elif held_out_then != settings['hold_out']:
        share = 'all' if held_out_then == 'none' else 'most'
        print(f'Warning: this run was trained on {share} of the faces that it is compared with here', file=sys.stderr)
    held_out = subset(dataset.held_out, MAX_FACES)
    generated = np.concatenate(list(draw_faces(checkpoint.prefix, len(held_out), args.seed, args.truncate)))
    print(
        f'{checkpoint.prefix}\nData: {dataset}\nFaces: {len(generated)} drawn, and compared with as many held-out ones'
    )
    measures, neighbours = measure(generated, dataset.faces, dataset.training, held_out)
    results = {
        'run': run_dir.name, 'checkpoint': checkpoint.prefix.name, 'step': checkpoint.step,
        'seed': args.seed, 'truncate': args.truncate,
        'data_digest': dataset.digest, 'trained_on_these': trained_on_these,
        'hold_out': dataset.hold_out,
        'faces': {'drawn': len(generated), 'trained on': len(dataset.training), 'held out': len(dataset.held_out)},
        'measures': measures,
    }  # fmt: skip
    indices, distances = neighbours['drawn']
    with replacing(out / 'evaluation.json') as temporary:
        temporary.write_text(json.dumps(results, indent=2) + '\n')
    with replacing(out / 'neighbours.png') as temporary:
        show_neighbours(generated, dataset.faces[indices], distances).save(temporary)
    with replacing(out / 'distances.png') as temporary:
        plot_distances(distances, neighbours['real'][1]).savefig(temporary, dpi=120)
    print(f'\n{table(measures)}\n\nGood faces have values like those of real ones. All results: {out}')


if __name__ == '__main__':
    cli.run(main)
