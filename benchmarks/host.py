"""Measure what the host costs in a training step, and what a GPU gains.

    python benchmarks/host.py                  networks so small that only the host's work is left
    python benchmarks/host.py --gpu            real networks: batches, precisions, steps per call, XLA

Prints a table: milliseconds per step of `train.train`, or with --gpu its images per second. With --pytorch PYTHON, a
Python interpreter that has PyTorch, the same training in plain PyTorch (pytorch_loop.py) is measured for comparison.
Each measurement runs in a process of its own, in turn, in several rounds. Figures are medians (minimum to maximum), and
ratios are medians of the ratios within a round.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from timing import in_own_process, milliseconds_per_step, spread

from common import cli

FORM = '{:.2f}'  # format of the figures
TINY = '--width 0.01 --batch-size 2'


def pytorch_milliseconds(python: str, flags: str, steps: int) -> float:
    """Milliseconds per step of pytorch_loop.py, run by an interpreter that has PyTorch."""
    command = [python, str(ROOT / 'benchmarks' / 'pytorch_loop.py'), *flags.split(), '--steps', str(steps)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def host_table(args) -> None:
    """Print what a step of tiny networks costs."""
    cases = list(itertools.product(('--no-xla', '--xla'), (1, 10, 100)))
    ours: dict = {case: [] for case in cases}
    pytorch: list[float] = []
    for _ in cli.progress(iterable=range(args.rounds), desc='Rounds'):
        for xla, size in cases:
            flags = f'{TINY} --steps-per-call {size} {xla}'
            steps, warm_up = 20 * size + args.steps, 2 * size + 100
            ours[xla, size].append(in_own_process(milliseconds_per_step, flags, steps, warm_up))
        if args.pytorch:
            pytorch.append(pytorch_milliseconds(args.pytorch, TINY, args.steps))

    print('| training | ms per step | / PyTorch, eager |\n| --- | --- | --- |')
    for (xla, size), times in ours.items():
        ratio = f'{statistics.median(np.divide(times, pytorch)):.3f}' if pytorch else ''
        name = f'ours, {size} a call' + (', XLA' if xla == '--xla' else '')
        print(f'| {name} | {spread(times, FORM)} | {ratio} |')
    if pytorch:
        print(f'| PyTorch, eager | {spread(pytorch, FORM)} | 1 |')


def gpu_table(args) -> None:
    """Print the images per second of real networks."""
    # The kinds of training: whether it is ours, and its flags.
    kinds = {
        f'ours, {size} a call, {xla[2:]}': (True, f'--steps-per-call {size} {xla}')
        for size, xla in itertools.product((1, 100), ('--no-xla', '--xla'))
    }
    if args.pytorch:
        kinds |= {'PyTorch, eager': (False, ''), 'PyTorch, compiled': (False, '--compile')}

    print('| system | batch | precision | training | images/s |\n| --- | --- | --- | --- | --- |')
    for system, batch, precision in itertools.product(('oreilly', 'ranjan'), args.batches, ('fp32', 'bf16')):
        common = f'--system {system} --width {args.width} --batch-size {batch} --precision {precision}'
        times: dict = {name: [] for name in kinds}
        for _, (name, (is_ours, more)) in itertools.product(range(args.rounds), kinds.items()):
            flags = f'{common} {more}'
            try:
                if is_ours:
                    time = in_own_process(milliseconds_per_step, flags, args.steps, args.steps // 2)
                else:
                    time = pytorch_milliseconds(args.pytorch, flags, args.steps)
                times[name].append(time)
            except Exception as error:  # for example, not enough memory for this batch
                print(f'{name}, {flags}: {error}', file=sys.stderr)
        for name, values in times.items():
            rate = spread([1000 * batch / time for time in values], '{:,.0f}') if values else 'failed'
            print(f'| {system} | {batch} | {precision} | {name} | {rate} |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--steps', type=int, help='steps of each measurement (300; with --gpu 400)')
    parser.add_argument('--pytorch', metavar='PYTHON', help='a Python interpreter that has PyTorch')
    parser.add_argument('--gpu', action='store_true', help='measure real networks')
    parser.add_argument('--batches', type=int, nargs='+', default=[16, 64, 128, 512], help='with --gpu: batch sizes')
    parser.add_argument('--width', type=float, default=1.0, help='with --gpu: --width of the networks (1)')
    args = parser.parse_args()
    args.steps = args.steps or (400 if args.gpu else 300)
    (gpu_table if args.gpu else host_table)(args)


if __name__ == '__main__':
    main()
