"""Measure how good and how varied generated faces are, and whether they are copies.

python evaluate.py --data PATH             the pretrained generator
python evaluate.py runs/NAME --data PATH   your own run, with its data set
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

# Python leaves out this folder with -P and -I. `common` comes first, because it checks the installation.
sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import cli

# isort: split
import numpy as np
from PIL import Image, ImageDraw, ImageOps

import helper
from common.files import replacing
from common.lazy import LazyModule, load_with_matplotlib
from config.flags import data_source
from metrics import features
from metrics.ms_ssim import mean_ms_ssim
from metrics.nearest import nearest
from metrics.swd import subset, swd
from rundir import checkpoints
from rundir.run_json import read_run
from sampling.generator import PRETRAINED, restored_generator
from sampling.pictures import LABEL_HEIGHT, labelled_grid
from training.data import choose_hold_out, load_dataset

figure = LazyModule('matplotlib.figure', load_with_matplotlib)

MAX_FACES = 4096  # limit for generated and for held-out faces, to save time and memory
MIN_HELD_OUT = 2  # minimum for the MS-SSIM of pairs
FEW_HELD_OUT = 100  # number of held-out faces below which the measures depend mostly on chance
NEAR = 0.01  # quantile of the held-out faces' distances, below which a face counts as near to a training face
PAIRS, PAIRS_PER_ROW = 16, 4  # pairs in each half of neighbours.png
MAX_PAIR_SIDE = 128  # limit for the side of an enlarged face, pixels


def measure(generated: np.ndarray, faces: np.ndarray, training: np.ndarray, held_out: np.ndarray) -> tuple[dict, dict]:
    """Measure generated faces, real faces and uniform noise: the columns `drawn`, `real` and `noise`.

    generated: uint8 (N, H, W, C). faces: the data set. training, held_out: indices of training and N held-out faces.
    Returns the measures by name and column, and the results of `metrics.nearest.nearest` by column.
    """
    real = faces[held_out]
    noise = np.random.default_rng(0).integers(0, 256, real.shape, np.uint8)
    described = {'drawn': generated, 'real': real, 'noise': noise}
    # Held-out faces are not compared with themselves: as many training faces show how far apart two real sets are.
    compared = described | {'real': faces[subset(training, len(real))]}

    # Find the nearest training face to each face.
    neighbours = {column: nearest(images, faces, training) for column, images in described.items()}
    near = np.quantile(neighbours['real'][1], NEAR)

    # Measure each column.
    real_features = features.extract(real)[0]
    measures: dict[str, dict[str, float]] = {}
    for column in described:
        found, distances = features.extract(compared[column])[0], neighbours[column][1]
        values = {f'SWD x1000, {level}': distance for level, distance in swd(compared[column], real).items()} | {
            'Fréchet distance of face features': features.frechet_distance(found, real_features),
            'precision, %': 100 * features.coverage(found, real_features),
            'recall, %': 100 * features.coverage(real_features, found),
            'MS-SSIM of pairs': mean_ms_ssim(described[column]),
            'distance to a training face, 5 %': float(np.quantile(distances, 0.05)),
            'distance to a training face, median': float(np.quantile(distances, 0.5)),
            f'nearer than {NEAR:.0%} of real faces, %': 100 * float(np.mean(distances < near)),
        }
        for name, value in values.items():
            measures.setdefault(name, {})[column] = value
    return measures, neighbours


def table(measures: dict[str, dict[str, float]]) -> str:
    """Format the measures, one row each."""
    width = max(map(len, measures))
    rows = [' ' * width + ''.join(f'{column:>10}' for column in next(iter(measures.values())))]
    rows += [f'{name:{width}}' + ''.join(f'{value:10.3f}' for value in row.values()) for name, row in measures.items()]
    return '\n'.join(rows)


def show_neighbours(generated: np.ndarray, nearest: np.ndarray, distances: np.ndarray) -> Image.Image:
    """Pairs of generated faces (N, H, W, C) and their nearest training faces: the first pairs, and the closest ones."""
    _, height, width, _ = generated.shape
    scale, halves = max(1, MAX_PAIR_SIDE // max(height, width)), []
    for title, indices in (
        ('The first faces, each next to the nearest training face:', np.arange(len(generated))[:PAIRS]),
        ('The faces closest to a training face:', np.argsort(distances)[:PAIRS]),
    ):
        # Put the faces of a pair side by side, with a gap after the pair.
        pairs = np.concatenate([generated[indices], nearest[indices]], axis=2)
        pairs = np.pad(pairs, ((0, 0), (0, 0), (0, width // 14), (0, 0)))
        captions = [f'{index}, distance {distances[index]:.1f}' for index in indices]
        grid = labelled_grid(pairs, captions, scale, PAIRS_PER_ROW)
        # Write the title above the grid.
        halves.append(ImageOps.expand(grid, (0, LABEL_HEIGHT, 0, 0), 'white'))
        ImageDraw.Draw(halves[-1]).text((2, 1), title, fill='black')
    return Image.fromarray(np.concatenate([np.asarray(half) for half in halves]))


def plot_distances(generated: np.ndarray, real: np.ndarray):
    """A figure with histograms of the distances of generated faces, (N,), and of held-out faces, (M,)."""
    plot = figure.Figure(figsize=(7, 4), layout='tight')
    axes = plot.subplots()
    bins = np.linspace(0, max(1, generated.max(), real.max()), 61)
    axes.hist(real, bins, density=True, alpha=0.6, label='held-out faces')
    axes.hist(generated, bins, density=True, alpha=0.6, label='generated faces')
    # Mark the distance below which a generated face is suspicious.
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
    add('--data', required=True, type=data_source,
        help='data set of the run: celeba, demo, or a zip or folder of images')  # fmt: skip
    add('--data-dir', type=cli.path, default=Path('data'), help='folder for downloads and the cache (data)')
    add('--seed', type=cli.number(int, 0, 2**63), default=0, help='random seed of the faces (0)')
    add('--truncate', type=cli.number(float, 0, 1, exclusive=True), default=1.0, help='scale of the latents (1)')

    add('--out', type=cli.path, help='folder for the results (evaluation, or evaluation-2, ... if that exists)')
    return parser.parse_args()


def load_data(args: Namespace, run: dict) -> helper.Dataset:
    """Load the data to compare with. Warn if the run may have been trained on the held-out faces. Raises UserError."""
    settings = run['settings'] | {'data': args.data, 'data_dir': args.data_dir, 'attributes': []}
    held_out_in_run = settings['hold_out']
    # The run may have held out nothing, or people, and the table of people may be missing on this machine.
    if held_out_in_run != 'images':
        settings['hold_out'] = choose_hold_out(settings)
    dataset = load_dataset(settings)
    # Refuse, or warn of, a data set that is too small.
    counts = f'{len(dataset.held_out)} of the {len(dataset.faces)} faces of {args.data} are held out'
    if len(dataset.held_out) < MIN_HELD_OUT:
        raise cli.UserError(f'{counts}: at least {MIN_HELD_OUT} are needed, so use a larger data set')
    if len(dataset.held_out) < FEW_HELD_OUT:
        print(f'Warning: only {counts}: the measures depend mostly on chance', file=sys.stderr)

    # Warn if held-out faces may be known to the generator.
    if run['data_digest'] != dataset.digest:
        reason = 'it may have been trained on the held-out faces'
        if args.data == 'demo':
            reason = 'a pretrained generator drew these faces, so they show nothing about a pretrained generator'
        print(f'Warning: {args.data} is not the data set of this run: {reason}', file=sys.stderr)
    elif held_out_in_run != settings['hold_out']:
        share = 'all' if held_out_in_run == 'none' else 'most'
        print(f'Warning: this run was trained on {share} of the held-out faces', file=sys.stderr)
    return dataset


def evaluate(args: Namespace, out: Path) -> None:
    """Measure the faces of a checkpoint, print the measures, and write the results into the folder `out`."""
    # Load the data, and draw as many faces as are held out.
    run_dir, _ = checkpoints.locate(args.checkpoint)
    run = read_run(run_dir)
    dataset = load_data(args, run)
    held_out = subset(dataset.held_out, MAX_FACES)
    # The demo faces are the faces of seed 0 of a pretrained generator: choose latents that none of them has.
    seed = (1, args.seed) if args.data == 'demo' else args.seed
    with restored_generator(args.checkpoint) as generator:
        checkpoint = generator.checkpoint
        generated = np.concatenate(list(generator.draw_samples(len(held_out), seed, args.truncate)))
    print(f'{checkpoint.prefix}\nData: {dataset}\nFaces: {len(generated)} drawn, {len(held_out)} held out')

    # Measure, and write the figures and the pictures.
    measures, neighbours = measure(generated, dataset.faces, dataset.training, held_out)
    results = {
        **checkpoint.describe(), 'seed': args.seed, 'truncate': args.truncate,
        'data_digest': dataset.digest, 'trained_on_these': run['data_digest'] == dataset.digest,
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
    print(f"\n{table(measures)}\n\nThe closer 'drawn' is to 'real', the better. All results: {out}")


def main() -> None:
    args = parse_arguments()
    with cli.output_folder(args.out, 'evaluation') as out:
        evaluate(args, out)


if __name__ == '__main__':
    cli.run(main)
