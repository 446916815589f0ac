"""Compare settings by the faces that they give in the same time.

    python benchmarks/compare.py --data PATH --minutes 4 --keep DIR --base '--precision fp32' '--flip 0.5' '--ema 0'
    python benchmarks/compare.py --data PATH --minutes 3 6 12 '--system recommended' '--system recommended --r1 0'

Trains with the base settings, and with each variant: a string of flags of train.py in addition to the base's. Prints a
table for each time: the steps, and the distances of drawn from held-out faces (see evaluate.py), a value for each seed.
Each training has a core of its own and the same processor time, so other work on the machine costs it nothing. The
three times of the second command are of the same trainings. Trainings that are complete in DIR are not repeated. Linux
only, for /proc.
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

import evaluate
from common import cli
from metrics import features
from metrics.ms_ssim import mean_ms_ssim
from metrics.swd import subset, swd
from rundir.run_json import read_run
from sampling.generator import draw_faces
from training.data import choose_hold_out, load_dataset


def processor_seconds(process) -> float:
    """The processor time that a running process has used."""
    fields = Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def run_dir(args, folder: Path, variant, seed, minutes) -> Path:
    """The run directory of a training, named after everything that it depends on except the data."""
    flags = [*shlex.split(args.base), *shlex.split(variant), 'seed', f'{seed}', 'minutes', f'{minutes:g}']
    return folder / '-'.join(flag.removeprefix('--') for flag in flags)


class Training:
    """A training on one core, for the processor times of `args.minutes`, each with a run directory of its own.

    All but the first resume a copy of the run directory of the previous time.
    """

    def __init__(self, args, folder: Path, core: int, variant, seed):
        self.args, self.folder, self.core, self.variant, self.seed = args, folder, core, variant, seed
        self.minutes = [each for each in args.minutes if not (self.run_dir(each) / 'done').exists()]
        self.start()

    def run_dir(self, minutes) -> Path:
        return run_dir(self.args, self.folder, self.variant, self.seed, minutes)

    def start(self):
        """Start training for the first of the times that are left."""
        # An incomplete run directory is of no use.
        where, data = self.run_dir(self.minutes[0]), self.args.data
        shutil.rmtree(where, ignore_errors=True)

        # Start a run, or resume that of the previous time.
        earlier = self.args.minutes[: self.args.minutes.index(self.minutes[0])]
        command = [sys.executable, f'{ROOT / "train.py"}', '--run-dir', f'{where}']
        if earlier:
            shutil.copytree(self.run_dir(earlier[-1]), where, ignore=shutil.ignore_patterns('done'))
            command += ['--resume']
        else:
            command += ['--data', data, '--data-dir', f'{self.folder / "data"}', '--seed', f'{self.seed}']
            command += ['--hold-out', choose_hold_out({'data': data, 'data_dir': 'data'}), '--epochs', '1000000']
            command += [*shlex.split(self.args.base), *shlex.split(self.variant)]
        self.seconds = 60 * (self.minutes[0] - (earlier[-1] if earlier else 0))
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, preexec_fn=functools.partial(os.sched_setaffinity, 0, {self.core})
        )

    def is_complete(self) -> bool:
        """Whether all times are complete. Starts the next one when one is. Raises SystemExit if a training failed."""
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


def measures(images: np.ndarray, unseen: np.ndarray) -> dict[str, str]:
    """Each measure of `images`, compared with as many held-out faces `unseen`, as text."""
    known, unseen_features = features.extract(images)[0], features.extract(unseen)[0]
    return {
        **{f'SWD x1000, {level}': f'{distance:.1f}' for level, distance in swd(images, unseen).items()},
        'Fréchet distance': f'{features.frechet_distance(known, unseen_features):.2f}',
        'precision, %': f'{100 * features.coverage(known, unseen_features):.0f}',
        'recall, %': f'{100 * features.coverage(unseen_features, known):.0f}',
        'MS-SSIM': f'{mean_ms_ssim(images):.3f}',
    }


def report(args, folder: Path):
    """Print a table for each time, with a row for each variant."""
    dataset = load_dataset(read_run(run_dir(args, folder, '', args.seeds[0], args.minutes[0]))['settings'])
    unseen = dataset.faces[subset(dataset.held_out, evaluate.MAX_FACES)]
    real = {'steps': ''} | measures(dataset.faces[subset(dataset.training, len(unseen))], unseen)
    for minutes in args.minutes:
        print(f'\n{minutes:g} minutes of processor time:\n')
        print('| | ' + ' | '.join(real) + ' |\n|' + ' --- |' * (len(real) + 1))
        print('| real faces | ' + ' | '.join(real.values()) + ' |')
        for variant in ['', *args.variants]:
            seeds = []
            for seed in args.seeds:
                where = run_dir(args, folder, variant, seed, minutes)
                steps = (where / 'log.csv').read_text().count('\n') - 1
                images = np.concatenate(list(draw_faces(where, len(unseen), seed=0)))
                seeds.append({'steps': f'{steps:,}'} | measures(images, unseen))
            cells = [', '.join(each[column] for each in seeds) for column in real]
            name = f'`{variant}`' if variant else f'base, `{args.base}`'
            print(f'| {name} | ' + ' | '.join(cells) + ' |', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('variants', nargs='*', help='flags of train.py, one string for each variant')
    parser.add_argument('--data', required=True, help='a zip or folder of images')
    parser.add_argument('--minutes', type=float, nargs='+', required=True, help='processor times of each training')
    parser.add_argument('--base', default='', help='flags of train.py for all trainings')
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
