"""Compare settings by the faces that they give in the same time.

    python benchmarks/compare.py --data PATH --minutes 4 --keep DIR         (three hours on 2 cores; Linux, for /proc)
    python benchmarks/compare.py --data PATH --minutes 8 --keep DIR '--update-order simultaneous' '--flip 0.5'

Trains with the base settings and with each of the variants, a string of flags on top of them, and reports how far the
faces that they draw are from held-out ones (see evaluate.py). Every training has a core to itself and the same
processor time, so other work on the machine costs it nothing. Trainings that are complete in DIR are not repeated.
"""

import argparse
import contextlib
import functools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import evaluate  # noqa: E402
from common import cli  # noqa: E402
from rundir.directory import read_run  # noqa: E402
from sampling import features, metrics  # noqa: E402
from sampling.generator import draw_faces  # noqa: E402
from training.run import choose_hold_out, load_dataset  # noqa: E402

BASE = '--precision auto'
VARIANTS = (
    '--precision fp32',
    '--ema 0',
    '--batch-size 32',
    '--batch-size 64',
    '--flip 0.5',
    '--augment translation',
    '--augment color-translation',
    '--augment color-translation-cutout',
    '--update-order simultaneous',
    '--learning-rate 4e-4',
    '--learning-rate-ratio 0.5',
    '--learning-rate-ratio 2',
    '--real-label 1 --wanted-label 1',
    '--instance-noise 0.1',
    '--weight-stddev 0',
)


def processor_seconds(process) -> float:
    """The processor time that a running process has used."""
    fields = Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def run_dir(args, folder: Path, variant, seed) -> Path:
    """The folder of a training, named after everything that it depends on except the data."""
    flags = [*shlex.split(args.base), *shlex.split(variant), 'seed', f'{seed}', 'minutes', f'{args.minutes:g}']
    return folder / '-'.join(flag.removeprefix('--') for flag in flags)


def train(args, folder: Path):
    """Run all trainings that are not complete, one per core at a time, the first seed of all variants first.

    Raises SystemExit if one fails.
    """
    waiting = [(variant, seed) for seed in args.seeds for variant in ['', *args.variants]]
    waiting = [item for item in waiting if not (run_dir(args, folder, *item) / 'done').exists()]
    cores: dict = dict.fromkeys(args.cores)
    while waiting or any(cores.values()):
        for core, running in cores.items():
            if running:
                process, where = running
                early = process.poll() is not None
                if not early and processor_seconds(process) < 60 * args.minutes:
                    continue
                process.terminate()
                if early or process.wait() != cli.STOPPED:
                    for other, _ in filter(None, cores.values()):
                        other.terminate()
                    sys.exit(f'{where.name}: the training failed')
                (where / 'done').touch()
                cores[core] = None
            if waiting:
                variant, seed = waiting.pop(0)
                where = run_dir(args, folder, variant, seed)
                command = [sys.executable, ROOT / 'train.py', '--data', args.data, '--data-dir', folder / 'data']
                command += ['--hold-out', choose_hold_out({'data': args.data})]
                command += [*shlex.split(args.base), *shlex.split(variant), '--seed', str(seed), '--epochs', '1000000']
                command += ['--run-dir', where]
                shutil.rmtree(where, ignore_errors=True)  # it is not complete
                process = subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, preexec_fn=functools.partial(os.sched_setaffinity, 0, {core})
                )
                cores[core] = process, where
        time.sleep(1)


def report(args, folder: Path):
    """Print a table of the distances of the faces that each variant draws, seed by seed."""
    dataset = load_dataset(read_run(run_dir(args, folder, '', args.seeds[0]))['settings'])
    faces = dataset.faces
    unseen = faces[metrics.subset(dataset.held_out, evaluate.MAX_FACES)]

    unseen_features = features.extract(unseen)[0]

    def cells(images):
        distances = list(metrics.swd(images, unseen).values())
        frechet = features.frechet_distance(features.extract(images)[0], unseen_features)
        return [*distances, np.mean(distances), frechet, metrics.mean_ms_ssim(images)]

    levels = [f'SWD x1000, {level}' for level in metrics.swd(unseen[:1], unseen[:1])]
    head = ['', 'steps', *levels, 'their mean', 'Fréchet distance', 'MS-SSIM']
    print('|'.join(['', *head, '']) + '\n|' + ' --- |' * len(head))
    rows = [('real faces', [(0, *cells(faces[metrics.subset(dataset.training, len(unseen))]))])]
    for variant in ['', *args.variants]:
        seeds = []
        for seed in args.seeds:
            where = run_dir(args, folder, variant, seed)
            steps = (where / 'log.csv').read_text().count('\n') - 1
            seeds.append((steps, *cells(np.concatenate(list(draw_faces(where, len(unseen), seed=0))))))
        rows.append((f'`{variant}`' if variant else f'base, `{args.base}`', seeds))
    for name, seeds in rows:
        counts, *distances, frechet, alike = zip(*seeds, strict=True)
        columns = [(f'{value:,}' for value in counts)]
        columns += [(f'{value:.1f}' for value in values) for values in distances]
        columns += [(f'{value:.3f}' for value in values) for values in (frechet, alike)]
        print(f'| {name} | ' + ' | '.join(', '.join(column) for column in columns) + ' |', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('variants', nargs='*', default=VARIANTS, help='flags of train.py, in one string each')
    parser.add_argument('--data', required=True)
    parser.add_argument('--minutes', type=float, required=True, help='processor time of each training')
    parser.add_argument('--base', default=BASE, help=f'flags of train.py for all ({BASE})')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--cores', type=int, nargs='+', default=sorted(os.sched_getaffinity(0)))
    parser.add_argument('--keep', type=Path, help='keep the run directories in this folder')
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        train(args, folder)
        report(args, folder)


if __name__ == '__main__':
    main()
