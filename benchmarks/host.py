"""Measure what the host costs in a training step, and what a GPU gains.

    python benchmarks/host.py                  networks so small that only the host's work is left
    python benchmarks/host.py --gpu            real networks: batches, precisions, steps a call, XLA, PyTorch

`train.py`'s own loop is timed, with its logging, progress bar and prefetching; beside it the same training written
plainly in PyTorch (pytorch_loop.py), if a Python that has it is named: --pytorch PATH/bin/python. Everything runs in a
process of its own, in turn, in several rounds; figures are medians (minimum to maximum), and ratios are medians of
those within a round.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from speed import spread  # noqa: E402

import helper  # noqa: E402
import train  # noqa: E402
from common import cli  # noqa: E402
from config.settings import choose_settings, parse_arguments, system_of  # noqa: E402
from graph.replica import Replica  # noqa: E402
from training.log import Recorder  # noqa: E402
from training.run import Run  # noqa: E402

IMAGES = 4096
FORM = '{:.2f}'  # of figures
VANISHING = '--width 0.01 --batch-size 2'
GPU_BATCHES = 16, 64, 128, 512


def milliseconds(flags: str, steps: int, warm_up: int) -> float:
    """Milliseconds per step of `train.train`, from the first call that begins after `warm_up` steps to the last."""
    ends = []
    add_steps = Recorder.add_steps

    def add_steps_and_look(recorder, step, *args):
        add_steps(recorder, step, *args)
        ends.append((step, time.perf_counter()))

    settings = choose_settings(parse_arguments(f'{flags} --steps {warm_up + steps} --sample-every 1000000'.split()))
    shape = IMAGES, *system_of(settings).image_shape
    faces = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    Recorder.add_steps = add_steps_and_look  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, 'w') as nowhere:
        settings |= {'checkpoint_every': warm_up + steps, 'keep_every': 1_000_000}
        with contextlib.redirect_stdout(nowhere):
            train.train(Run(settings, helper.Dataset(faces, 'none'), Path(folder)), Replica())
    (first, began), (last, ended) = next(end for end in ends if end[0] >= warm_up), ends[-1]
    return 1000 * (ended - began) / (last - first)


def ours(flags: str, steps: int, warm_up: int) -> list[str]:
    """The command that prints `milliseconds`, in a process of its own."""
    return [sys.executable, __file__, '--measure', json.dumps([flags, steps, warm_up])]


def theirs(python: str, flags: str, steps: int, *more: str) -> list[str]:
    """The command that prints the milliseconds per step of the loop in PyTorch."""
    return [python, str(ROOT / 'benchmarks' / 'pytorch_loop.py'), *flags.split(), '--steps', str(steps), *more]


def measure(command: list[str]) -> float:
    """The number that a command prints."""
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def host(args) -> None:
    """The table of vanishing networks."""
    cases = {
        (f'{size} a call', 'XLA' if xla else ''): (
            f'{VANISHING} --steps-per-call {size}{" --xla" if xla else " --no-xla"}',
            20 * size + 300,
            2 * size + 100,
        )
        for xla, size in itertools.product((False, True), (1, 10, 100))
    }
    times: dict = {case: [] for case in cases}
    others: list[float] = []
    for _ in cli.progress(iterable=range(args.rounds), desc='Rounds'):
        for case, (flags, steps, warm_up) in cases.items():
            times[case].append(measure(ours(flags, steps, warm_up)))
        if args.pytorch:
            others.append(measure(theirs(args.pytorch, VANISHING, 300)))
    print('| training | ms per step | / PyTorch, eager |\n| --- | --- | --- |')
    for (size, xla), of_case in times.items():
        ratio = f'{statistics.median(np.divide(of_case, others)):.3f}' if others else ''
        print(f'| ours, {", ".join(filter(None, (size, xla)))} | {spread(of_case, FORM)} | {ratio} |')
    if others:
        print(f'| PyTorch, eager | {spread(others, FORM)} | 1 |')


def utilisation() -> str:
    """What nvidia-smi says now of the first GPU: its utilisation and its memory."""
    query = ['nvidia-smi', '--query-gpu=utilization.gpu,memory.used', '--format=csv,noheader', '--id=0']
    try:
        return subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ''


def gpu(args) -> None:
    """The table of real networks."""
    print('| system | batch | precision | training | images/s | GPU, memory |\n| --- | --- | --- | --- | --- | --- |')
    for system, batch, precision in itertools.product(('oreilly', 'ranjan'), args.batches, ('fp32', 'bf16')):
        common = f'--system {system} --width {args.width} --batch-size {batch} --precision {precision}'
        programs = itertools.product((1, 100), ('--no-xla', '--xla'))
        kinds = {f'{size} a call, {xla[2:]}': f' --steps-per-call {size} {xla}' for size, xla in programs}
        torch_kinds = {'PyTorch, eager': [], 'PyTorch, compiled': ['--compile']} if args.pytorch else {}
        for name in (*kinds, *torch_kinds):
            rates, states = [], []
            for _ in range(args.rounds):
                if name in kinds:
                    call = ours(common + kinds[name], args.steps, args.steps // 2)
                else:
                    call = theirs(args.pytorch, common, args.steps, *torch_kinds[name])
                process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
                while process.poll() is None:
                    states.append(utilisation())
                    time.sleep(1)
                if process.returncode:
                    break
                rates.append(1000 * batch / float(process.communicate()[0]))
            rate = spread(rates, FORM) if rates else 'failed'
            print(f'| {system} | {batch} | {precision} | {name} | {rate} | {max(states, default="")} |')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--pytorch', metavar='PYTHON', help='a Python interpreter that has PyTorch')
    parser.add_argument('--gpu', action='store_true', help='measure real networks')
    parser.add_argument('--batches', type=int, nargs='+', default=GPU_BATCHES, help='with --gpu')
    parser.add_argument('--steps', type=int, default=400, help='of each measurement, with --gpu (400)')
    parser.add_argument('--width', type=float, default=1.0, help='of the networks, with --gpu (1)')
    parser.add_argument('--measure', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(milliseconds(*json.loads(args.measure)))
    else:
        (gpu if args.gpu else host)(args)


if __name__ == '__main__':
    main()
