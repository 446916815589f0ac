"""Compare settings by the faces that they give in the same time.

    python benchmarks/compare.py --data PATH --minutes 4 --keep DIR --base '--precision fp32' '--flip 0.5' '--ema 0'
    python benchmarks/compare.py --data PATH --minutes 3 6 12 '--system recommended' '--system recommended --r1 0'
    python benchmarks/compare.py --data PATH --minutes 20 --base '--system recommended64' --pytorch PYTHON \\
        'pytorch_examples --batch-size 32' 'pytorch_examples --batch-size 128' --picture minutes.png

Trains with the base settings, and with each variant: a string of flags of train.py in addition to the base's. Prints a
table for each time: the steps, and the distances of drawn from held-out faces (see evaluate.py), a value for each seed.
With --picture, also writes a picture with the first faces of each training, not selected. A variant that starts with
pytorch_examples is a training of pytorch_examples.py with these flags, run by PYTHON, an interpreter that has PyTorch.

Each training has a core of its own and the same processor time, so other work on the machine costs it nothing. The
three times of the second command are of the same trainings; pytorch_examples.py trains anew for each time. Trainings
that are complete in DIR are not repeated. Linux only, for /proc.
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

from timing import machine

import evaluate
import helper
from common import cli
from common.files import replacing
from config.settings import choose_settings, parse_arguments
from graph.session import has_fast_bfloat16
from metrics import features
from metrics.ms_ssim import mean_ms_ssim
from metrics.swd import subset, swd
from sampling.generator import draw_faces
from sampling.pictures import labelled_grid
from training.data import choose_hold_out, load_dataset

PYTORCH = 'pytorch_examples'  # first word of a variant that is a training of pytorch_examples.py
FACES = 'training.npy'  # file of the training faces for it
PICTURED = 12  # faces of each training in the picture


def processor_seconds(process) -> float:
    """The processor time that a running process has used."""
    fields = Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def run_dir(args, folder: Path, variant, seed, minutes) -> Path:
    """The run directory of a training, named after everything that it depends on except the data."""
    flags = [*shlex.split(args.base), *shlex.split(variant), 'seed', f'{seed}', 'minutes', f'{minutes:g}']
    return folder / '-'.join(flag.removeprefix('--') for flag in flags)


def is_pytorch(variant: str) -> bool:
    """Whether a variant is a training of pytorch_examples.py."""
    return variant.split()[:1] == [PYTORCH]


def base_flags(args, folder: Path) -> list[str]:
    """The flags of train.py that all its trainings have."""
    hold_out = choose_hold_out({'data': args.data, 'data_dir': 'data'})
    flags = ['--data', args.data, '--data-dir', f'{folder / "data"}', '--hold-out', hold_out, '--epochs', '1000000']
    return [*flags, *shlex.split(args.base)]


class Training:
    """A training on one core, for the processor times of `args.minutes`, each with a run directory of its own.

    All but the first of train.py resume a copy of the run directory of the previous time.
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
        where = self.run_dir(self.minutes[0])
        shutil.rmtree(where, ignore_errors=True)

        # Start a run, or resume that of the previous time.
        earlier = [] if is_pytorch(self.variant) else self.args.minutes[: self.args.minutes.index(self.minutes[0])]
        if earlier:
            shutil.copytree(self.run_dir(earlier[-1]), where, ignore=shutil.ignore_patterns('done'))
            command = [sys.executable, f'{ROOT / "train.py"}', '--run-dir', f'{where}', '--resume']
        else:
            command = self.command(where)
        self.seconds = 60 * (self.minutes[0] - (earlier[-1] if earlier else 0))
        self.stopping = False
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, preexec_fn=functools.partial(os.sched_setaffinity, 0, {self.core})
        )

    def command(self, where: Path) -> list[str]:
        """The command of a new training in the run directory `where`."""
        seed, flags = ['--seed', f'{self.seed}'], shlex.split(self.variant)
        if is_pytorch(self.variant):
            program = [self.args.pytorch, f'{ROOT / "benchmarks" / PYTORCH}.py', '--out', f'{where}']
            return [*program, '--faces', f'{self.folder / FACES}', '--count', f'{self.args.count}', *seed, *flags[1:]]
        program = [sys.executable, f'{ROOT / "train.py"}', '--run-dir', f'{where}']
        return [*program, *seed, *base_flags(self.args, self.folder), *flags]

    def is_complete(self) -> bool:
        """Whether all times are complete. Starts the next one when one is. Raises SystemExit if a training failed."""
        # Stop the training when its time is over. It then saves its results.
        status = self.process.poll()
        if status is None:
            if not self.stopping and processor_seconds(self.process) >= self.seconds:
                self.process.terminate()
                self.stopping = True
            return False

        where = self.run_dir(self.minutes.pop(0))
        if not self.stopping or status != (0 if is_pytorch(self.variant) else cli.STOPPED):
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


def drawn_faces(args, folder: Path, variant, seed, minutes) -> np.ndarray:
    """The first faces of a complete training, uint8 (args.count, H, W, C)."""
    where = run_dir(args, folder, variant, seed, minutes)
    if is_pytorch(variant):
        return np.load(where / 'faces.npy')
    return np.concatenate(list(draw_faces(where, args.count, seed=0)))


def report(args, folder: Path, dataset: helper.Dataset):
    """Print a table for each time, with a row for each variant, and write the picture, with a row for each training."""
    unseen = dataset.faces[subset(dataset.held_out, args.count)]
    real = {'steps': ''} | measures(dataset.faces[subset(dataset.training, len(unseen))], unseen)
    pictured: dict[str, np.ndarray] = {}
    print(f'{machine()}. Seeds: {", ".join(map(str, args.seeds))}. Data: {dataset}.')
    print(f'--precision auto: {"bf16" if has_fast_bfloat16() else "fp32"}.')
    if args.pytorch:
        print(f'{PYTORCH}: fp32, PyTorch {pytorch_version(args.pytorch)}.')

    for minutes in args.minutes:
        print(f'\n{minutes:g} minutes of processor time:\n')
        print('| | ' + ' | '.join(real) + ' |\n|' + ' --- |' * (len(real) + 1))
        print('| real faces | ' + ' | '.join(real.values()) + ' |')
        for variant in ['', *args.variants]:
            seeds = []
            for seed in args.seeds:
                where = run_dir(args, folder, variant, seed, minutes)
                steps = (where / 'log.csv').read_text().count('\n') - 1
                images = drawn_faces(args, folder, variant, seed, minutes)
                seeds.append({'steps': f'{steps:,}'} | measures(images, unseen))
                label = f'{variant or args.base or "base"}, {minutes:g} minutes, seed {seed}'
                pictured[label] = np.concatenate(images[:PICTURED], axis=1)
            cells = [', '.join(each[column] for each in seeds) for column in real]
            name = f'`{variant}`' if variant else f'base, `{args.base}`'
            print(f'| {name} | ' + ' | '.join(cells) + ' |', flush=True)

    if args.picture:
        with replacing(args.picture) as temporary:
            labelled_grid(pictured.values(), pictured, scale=1, columns=1).save(temporary)


def pytorch_version(python: str) -> str:
    """The version of PyTorch that an interpreter has. Raises CalledProcessError if it has none."""
    command = [python, '-c', 'import torch; print(torch.__version__)']
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('variants', nargs='*', help='flags of train.py, one string for each variant')
    parser.add_argument('--data', required=True, help='a zip or folder of images')
    parser.add_argument('--minutes', type=float, nargs='+', required=True, help='processor times of each training')
    parser.add_argument('--base', default='', help='flags of train.py for all trainings')
    parser.add_argument('--pytorch', metavar='PYTHON', help=f'Python interpreter for variants of {PYTORCH}')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--cores', type=int, nargs='+', default=sorted(os.sched_getaffinity(0)))
    parser.add_argument('--keep', type=Path, help='keep the run directories in this folder')
    parser.add_argument('--picture', type=Path, help=f'write a picture of the first {PICTURED} faces of each training')
    args = parser.parse_args()
    args.minutes.sort()
    if any(map(is_pytorch, args.variants)) and not args.pytorch:
        parser.error(f'{PYTORCH} requires --pytorch')

    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dataset = load_dataset(choose_settings(parse_arguments(base_flags(args, folder))))
        args.count = min(len(dataset.held_out), evaluate.MAX_FACES)
        if args.pytorch:
            pytorch_version(args.pytorch)  # raises an exception before anything is trained
            np.save(folder / FACES, dataset.faces[dataset.training])
        train(args, folder)
        report(args, folder, dataset)


if __name__ == '__main__':
    main()
