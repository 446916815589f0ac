"""Compare settings by the faces that they give in the same time.

    python benchmarks/compare.py --data PATH --minutes 4 --keep DIR         (three hours on 2 cores; Linux, for /proc)
    python benchmarks/compare.py --data PATH --minutes 8 --keep DIR '--update-order simultaneous' '--flip 0.5'
    python benchmarks/compare.py --data PATH --minutes 3 6 12 --base '--precision fp32' '--system recommended'

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
from metrics import features  # noqa: E402
from metrics.ms_ssim import mean_ms_ssim  # noqa: E402
from metrics.swd import subset, swd  # noqa: E402
from rundir.run_json import read_run  # noqa: E402
from sampling.generator import draw_faces  # noqa: E402
from training.data import choose_hold_out, load_dataset  # noqa: E402

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


def run_dir(args, folder: Path, variant, seed, minutes) -> Path:
    """The folder of a training, named after everything that it depends on except the data."""
    flags = [*shlex.split(args.base), *shlex.split(variant), 'seed', f'{seed}', 'minutes', f'{minutes:g}']
    return folder / '-'.join(flag.removeprefix('--') for flag in flags)


class Training:
    """A training on a core of its own, for the processor times of `args.minutes` one after the other.

    Each time has its own run directory; all but the first begin with what is in that of the time before.
    """

    def __init__(self, args, folder: Path, core: int, variant, seed):
        self.args, self.folder, self.core, self.variant, self.seed = args, folder, core, variant, seed
        self.minutes = [each for each in args.minutes if not (self.run_dir(each) / 'done').exists()]
        self.start()

    def run_dir(self, minutes) -> Path:
        return run_dir(self.args, self.folder, self.variant, self.seed, minutes)

    def start(self):
        """Start training for the first of the times that are left."""
        where, data = self.run_dir(self.minutes[0]), self.args.data
        earlier = self.args.minutes[: self.args.minutes.index(self.minutes[0])]
        shutil.rmtree(where, ignore_errors=True)  # it is not complete
        command = [sys.executable, f'{ROOT / "train.py"}', '--run-dir', f'{where}']
        if earlier:
            shutil.copytree(self.run_dir(earlier[-1]), where, ignore=shutil.ignore_patterns('done'))
            command += ['--resume']
        else:
            command += ['--data', data, '--data-dir', f'{self.folder / "data"}']
            command += ['--hold-out', choose_hold_out({'data': data}), '--seed', str(self.seed)]
            command += [*shlex.split(self.args.base), *shlex.split(self.variant), '--epochs', '1000000']
        self.seconds = 60 * (self.minutes[0] - (earlier[-1] if earlier else 0))
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, preexec_fn=functools.partial(os.sched_setaffinity, 0, {self.core})
        )

    def is_complete(self) -> bool:
        """Whether it is complete; go on to the next time, if there is one. Raises SystemExit if it failed."""
        early = self.process.poll() is not None
        if not early and processor_seconds(self.process) < self.seconds:
            return False
        self.process.terminate()
        where = self.run_dir(self.minutes.pop(0))
        if early or self.process.wait() != cli.STOPPED:
            sys.exit(f'{where.name}: the training failed')
        (where / 'done').touch()
        if self.minutes:
            self.start()
        return not self.minutes


def train(args, folder: Path):
    """Run all trainings that are not complete, one per core at a time, the first seed of all variants first."""
    waiting = [(variant, seed) for seed in args.seeds for variant in ['', *args.variants]]
    waiting = [each for each in waiting if not (run_dir(args, folder, *each, args.minutes[-1]) / 'done').exists()]
    running: dict[int, Training] = {}
    try:
        while waiting or running:
            for core in args.cores:
                if core in running and running[core].is_complete():
                    del running[core]
                if core not in running and waiting:
                    running[core] = Training(args, folder, core, *waiting.pop(0))
            time.sleep(1)
    finally:
        for training in running.values():
            training.process.terminate()


def report(args, folder: Path):
    """Print a table for each time of how far the faces that each variant draws are from real ones, seed by seed."""
    dataset = load_dataset(read_run(run_dir(args, folder, '', args.seeds[0], args.minutes[0]))['settings'])
    faces = dataset.faces
    unseen = faces[subset(dataset.held_out, evaluate.MAX_FACES)]
    unseen_features = features.extract(unseen)[0]

    def cells(images):
        known = features.extract(images)[0]
        return [
            *swd(images, unseen).values(),
            features.frechet_distance(known, unseen_features),
            100 * features.coverage(known, unseen_features),
            100 * features.coverage(unseen_features, known),
            mean_ms_ssim(images),
        ]

    levels = [f'SWD x1000, {level}' for level in swd(unseen[:1], unseen[:1])]
    head = ['', 'steps', *levels, 'Fréchet distance', 'precision, %', 'recall, %', 'MS-SSIM']
    formats = ['{:,}', *['{:.1f}' for _ in levels], '{:.2f}', '{:.0f}', '{:.0f}', '{:.3f}']
    real = cells(faces[subset(dataset.training, len(unseen))])
    for minutes in args.minutes:
        print(f'\n{minutes:g} minutes of processor time:\n')
        print('|'.join(['', *head, '']) + '\n|' + ' --- |' * len(head))
        rows = [('real faces', [(0, *real)])]
        for variant in ['', *args.variants]:
            seeds = []
            for seed in args.seeds:
                where = run_dir(args, folder, variant, seed, minutes)
                steps = (where / 'log.csv').read_text().count('\n') - 1
                seeds.append((steps, *cells(np.concatenate(list(draw_faces(where, len(unseen), seed=0))))))
            rows.append((f'`{variant}`' if variant else f'base, `{args.base}`', seeds))
        for name, seeds in rows:
            columns = [
                ', '.join(form.format(value) for value in values)
                for form, values in zip(formats, zip(*seeds, strict=True), strict=True)
            ]
            print(f'| {name} | ' + ' | '.join(columns) + ' |', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('variants', nargs='*', default=VARIANTS, help='flags of train.py, in one string each')
    parser.add_argument('--data', required=True)
    parser.add_argument('--minutes', type=float, nargs='+', required=True, help='processor times of each training')
    parser.add_argument('--base', default=BASE, help=f'flags of train.py for all ({BASE})')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--cores', type=int, nargs='+', default=sorted(os.sched_getaffinity(0)))
    parser.add_argument('--keep', type=Path, help='keep the run directories in this folder')
    args = parser.parse_args()
    args.minutes.sort()
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        train(args, folder)
        report(args, folder)


if __name__ == '__main__':
    main()
