"""How good are the faces, how varied, and are they copies?

python evaluate.py --data PATH             the generator that comes with the project
python evaluate.py runs/NAME --data PATH   a training run of your own, with the data that it trained on
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import cli
import generate
import helper
import metrics
import rundir

MOST_FACES = 4096  # that are drawn, and of those held out that are compared: it takes time and memory
LEAST_HELD_OUT = 2  # one is no pair
COLUMNS = ('drawn', 'real', 'noise')
QUANTILES = {'5 %': 0.05, 'median': 0.5}  # of distances
RARE = 0.01  # so few of the faces held out are nearer to one trained on than what is called near
PAIRS = 16  # in each half of neighbours.png
PAIRS_IN_A_ROW = 4
PAIR_SIDE = 128  # pixels, that its faces are enlarged to at most


def measure(drawn, faces, trained, held_out):
    """All measures of the faces `drawn`, uint8 (N, H, W, 3): those of COLUMNS by the measure's name.

    faces: uint8 (M, H, W, 3). trained, held_out: numbers of faces, of those trained on, and of N that were not.
    The column `real` is what real faces get: for the sliced Wasserstein distances to those held out, as many of those
    trained on; for all other measures those held out. `noise` is what uniform noise gets.

    Returns the measures, and by column what `metrics.nearest` gives.
    """
    unseen = faces[held_out]
    noise = np.random.default_rng(0).integers(0, 256, unseen.shape, np.uint8)
    measures = {}
    for column, images in zip(COLUMNS, (drawn, faces[helper.sample(trained, len(unseen))], noise), strict=True):
        for side, distance in metrics.swd(images, unseen).items():
            measures.setdefault(f'SWD x1000, {side}x{side}', {})[column] = distance
    sets = dict(zip(COLUMNS, (drawn, unseen, noise), strict=True))
    measures['MS-SSIM of pairs'] = {column: metrics.mean_ms_ssim(images) for column, images in sets.items()}
    neighbours = {column: metrics.nearest(images, faces, trained) for column, images in sets.items()}
    distances = {column: distance for column, (_, distance) in neighbours.items()}
    for name, quantile in QUANTILES.items():
        measures[f'distance to a training face, {name}'] = {
            column: float(np.quantile(distance, quantile)) for column, distance in distances.items()
        }
    near = np.quantile(distances['real'], RARE)  # so of honest faces as few are below it
    measures[f'nearer than {RARE:.0%} of real faces, %'] = {
        column: 100 * float(np.mean(distance < near)) for column, distance in distances.items()
    }
    return measures, neighbours


def table(measures) -> str:
    """The measures, a row each."""
    width = max(map(len, measures))
    rows = [f'{"":{width}}' + ''.join(f'{column:>10}' for column in COLUMNS)]
    for name, values in measures.items():
        rows.append(f'{name:{width}}' + ''.join(f'{values[column]:10.3f}' for column in COLUMNS))
    return '\n'.join(rows)


def show_neighbours(drawn, nearest, distances) -> Image.Image:
    """Drawn faces, each with the training face nearest to it: the first ones, and those with the least distance.

    drawn, nearest: uint8 (N, H, W, 3), distances: (N,).
    """
    side = drawn.shape[1]
    scale, gap = max(1, PAIR_SIDE // side), np.zeros((side, side // 14, 3), np.uint8)
    halves = {
        'The first faces, each beside the face nearest to it of those trained on:': np.arange(len(drawn))[:PAIRS],
        'The faces that are the nearest to one trained on:': np.argsort(distances)[:PAIRS],
    }
    pictures = []
    for title, numbers in halves.items():
        pairs = []
        for number in numbers:
            pair = np.concatenate([drawn[number], nearest[number], gap], axis=1)
            pairs.append(generate.label(pair, f'{number}, distance {distances[number]:.1f}', scale))
        grid = helper.images_square_grid(pairs, columns=PAIRS_IN_A_ROW)
        picture = Image.new('RGB', (grid.width, grid.height + generate.LABEL_HEIGHT), 'white')
        ImageDraw.Draw(picture).text((2, 1), title, fill='black')
        picture.paste(grid, (0, generate.LABEL_HEIGHT))
        pictures.append(np.asarray(picture))
    return Image.fromarray(np.concatenate(pictures))


def plot_distances(drawn, real, path: Path):
    """Draw the distributions of two sets of distances, (N,) and (M,), into the PNG file `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout='tight')
    axes = figure.subplots()
    bins = np.linspace(0, max(1, drawn.max(), real.max()), 61)
    axes.hist(real, bins, density=True, alpha=0.6, label='real faces, held out')
    axes.hist(drawn, bins, density=True, alpha=0.6, label='drawn faces')
    axes.axvline(np.quantile(real, RARE), color='black', linestyle=':', label=f'{RARE:.0%} of real faces are nearer')
    axes.set_xlabel('distance to the nearest face trained on')
    axes.set_yticks([])
    axes.legend()
    with helper.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def write(out: Path, results, drawn, faces, neighbours):
    """Write evaluation.json, neighbours.png and distances.png into the folder `out`. See `measure`."""
    out.mkdir(parents=True, exist_ok=True)
    with helper.replacing(out / 'evaluation.json') as temporary:
        temporary.write_text(json.dumps(results, indent=2) + '\n')
    nearest, distances = neighbours['drawn']
    with helper.replacing(out / 'neighbours.png') as temporary:
        show_neighbours(drawn, faces[nearest], distances).save(temporary)
    plot_distances(distances, neighbours['real'][1], out / 'distances.png')


def parse_arguments():
    parser = cli.Parser('Measure how good and how varied drawn faces are, and whether they are copies.')
    add = parser.add_argument
    add('checkpoint', nargs='?', type=cli.path, default=generate.PRETRAINED, metavar='RUN',
        help='a run directory or a checkpoint in it (pretrained)')  # fmt: skip
    add('--data', required=True, help='what it trained on: celeba, demo, or a zip or folder of images')
    add('--data-dir', type=cli.path, default=Path('data'), help='where downloads and prepared faces are kept (data)')
    add('--seed', type=cli.number(int, 0, 2**63), default=0, help='another seed, other faces (0)')
    add('--truncate', type=cli.number(float, 0, 1, above=True), default=1.0, help='below 1: more typical, less varied')
    add('--out', type=cli.path, help='folder for the results (evaluation, or evaluation-2, ... if that is there)')
    args = parser.parse_args()
    if args.data == '':
        parser.error('--data is empty')
    return args


def main():
    args = parse_arguments()
    run_dir, checkpoint = rundir.find_checkpoint(args.checkpoint)
    run = rundir.read_run(run_dir)
    out = args.out or rundir.unused(Path('evaluation'))
    if rundir.holds_something(out):
        raise cli.UserError(f'{out} is not empty: name another folder with --out')
    faces = generate.load_data(run['settings'] | {'data': args.data, 'data_dir': args.data_dir})
    trained, held_out = helper.split(len(faces))
    if len(held_out) < LEAST_HELD_OUT:
        raise cli.UserError(
            f'{args.data} holds {len(faces)} faces, of which every {helper.HOLD_OUT}th is held out: '
            f'{LEAST_HELD_OUT * helper.HOLD_OUT} are needed'
        )
    digest = helper.digest(faces)
    if run['data_digest'] != digest:
        print(
            f'Warning: {args.data} does not hold the faces it was trained on; held-out is then not known to be unseen',
            file=sys.stderr,
        )
    compared = helper.sample(held_out, MOST_FACES)
    drawn = np.concatenate(list(generate.draw_faces(checkpoint, len(compared), args.seed, args.truncate)))
    print(f'{checkpoint}')
    print(f'Faces: {len(drawn)} drawn, {len(trained)} trained on, {len(compared)} of {len(held_out)} held out')
    measures, neighbours = measure(drawn, faces, trained, compared)
    results = {
        'run': run_dir.name,
        'checkpoint': checkpoint.name,
        'step': {path: step for step, path in rundir.find_checkpoints(run_dir)}.get(checkpoint),
        'seed': args.seed,
        'truncate': args.truncate,
        'data_digest': digest,
        'trained_on_these': run['data_digest'] == digest,
        'faces': {'drawn': len(drawn), 'trained on': len(trained), 'held out': len(held_out)},
        'measures': measures,
    }
    with helper.naming(out):
        write(out, results, drawn, faces, neighbours)
    print(f'\n{table(measures)}\n\nGood faces have the numbers of real ones. All results: {out}')


if __name__ == '__main__':
    cli.run(main)
