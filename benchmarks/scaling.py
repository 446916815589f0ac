"""Measure two workers against one process, and what they send each other.

    python benchmarks/scaling.py [--batch 512] [--steps 8] [--rounds 3]     (ten minutes; Linux, for /proc; 2 cores)

Trains by `train.py` itself, each process on one core, and takes speeds from log.csv: medians of all steps but the
first. Three kinds: one process with a batch B; two workers that divide it; and, as what two workers could reach if
nothing was sent, two independent processes with B/2 each. All kinds take turns in several rounds; ratios are those
within a round, and all figures are medians (minimum to maximum). Then a calculation for many GPUs.
"""

import argparse
import contextlib
import csv
import io
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

from speed import machine, spread, step_operations  # noqa: E402

import train  # noqa: E402
from config.settings import choose_settings, parse_arguments, system_of  # noqa: E402
from graph.replica import Replica  # noqa: E402
from graph.session import tf  # noqa: E402

WARM_UP = 4  # steps that are not counted
# What the calculation assumes: a GPU computes such layers at a fifth of an A100's 312 TFLOP/s in bf16; bandwidths are
# bytes per second and GPU, latencies seconds per message.
GPU_RATE = 60e12
LINKS = {'NVLink, 300 GB/s': (300e9, 5e-6), 'InfiniBand, 25 GB/s': (25e9, 1e-5), 'Ethernet, 1.25 GB/s': (1.25e9, 5e-5)}


def write_pictures(path, count):
    """A zip archive of random pictures."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, 'w') as archive:
        for number in range(count):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, 'PNG')
            archive.writestr(f'{number}.png', file.getvalue())


def loopback_bytes() -> int:
    """The bytes that this machine has sent to itself."""
    (line,) = (line for line in Path('/proc/net/dev').read_text().splitlines() if line.strip().startswith('lo:'))
    return int(line.split()[9])


def trained(folder, *flags, cores, steps) -> subprocess.Popen:
    """Start a training on some cores."""
    command = [sys.executable, ROOT / 'train.py', '--data', 'pictures.zip', '--steps', steps, '--sample-every', steps]
    command += ['--run-dir', tempfile.mkdtemp(dir=folder), *flags]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )


def seconds(folder, *flags, each, steps) -> tuple[float, float]:
    """Seconds per step of simultaneous trainings, each on its set of cores, and the MB sent in all."""
    before = loopback_bytes()
    processes = [trained(folder, *flags, cores=cores, steps=steps) for cores in each]
    rates = []
    try:
        for process in processes:
            if process.wait():
                sys.exit('a training failed')
            command = list(map(str, process.args))  # type: ignore[arg-type]
            run_dir = Path(command[command.index('--run-dir') + 1])
            with open(run_dir / 'log.csv', newline='') as file:
                rates += [float(row['images_per_second']) for row in csv.DictReader(file)][WARM_UP:]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
    batch = int(flags[flags.index('--batch-size') + 1])
    return batch / statistics.median(rates or [np.nan]), (loopback_bytes() - before) / 1e6


def parameters(settings) -> int:
    """The number of trained weights."""
    with train.build_graph(settings, Replica()).graph.as_default():
        return sum(variable.shape.num_elements() for variable in tf.trainable_variables())


def plan(system, weights, batch):
    """Print a calculation of a step on many GPUs with the same batch on each."""
    images = GPU_RATE / step_operations(system)
    norms = sum(layer.batch_norm for layer in system.generator) + 3 * sum(
        layer.batch_norm for layer in system.discriminator
    )
    size = f'{system.image_size}x{system.image_size}'
    print(f'\n{size}, {batch} images per GPU, {weights / 1e6:.1f} M weights (calculated):')
    print('| GPUs | link | compute, ms | reduction, ms | images/s, no overlap | efficiency |')
    print('|' + ' --- |' * 6)
    for count in (8, 64):
        for link, (bandwidth, latency) in LINKS.items():
            sent = 2 * (count - 1) / count * 4 * weights / bandwidth  # a ring
            messages = 2 * (count - 1) * latency * (2 * norms + 4)  # forward and backward, and the buffers
            compute, reduction = batch / images, sent + messages
            rate = count * batch / (compute + reduction)
            print(
                f'| {count} | {link} | {1000 * compute:.1f} | {1000 * reduction:.1f} | {rate:,.0f} | '
                f'{compute / (compute + reduction):.0%} |'
            )


def main():
    parser = argparse.ArgumentParser(description='Measure two workers against one process.')
    parser.add_argument('--batch', type=int, default=512, help='images a step (512)')
    parser.add_argument('--steps', type=int, default=8, help=f'steps, more than {WARM_UP} (8)')
    parser.add_argument('--rounds', type=int, default=3, help='how often everything is measured (3)')
    args = parser.parse_args()
    first, second = sorted(os.sched_getaffinity(0))[:2]
    whole, half = ('--batch-size', args.batch), ('--batch-size', args.batch // 2)
    workers = *whole, '--workers', 2
    kinds = {
        '1 process, 1 core': (whole, [{first}]),
        '2 independent processes, half the batch each': (half, [{first}, {second}]),
        '2 workers': (workers, [{first, second}]),
        '2 workers, `--reduce-precision bf16`': ((*workers, '--reduce-precision', 'bf16'), [{first, second}]),
        '2 workers, `--local-batch-norm`': ((*workers, '--local-batch-norm'), [{first, second}]),
    }
    weights = parameters(choose_settings(parse_arguments([])))
    print(f'{machine()}. A batch of {args.batch}, {weights / 1e6:.2f} M weights, {args.rounds} rounds.\n')
    measured: dict = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / 'pictures.zip', 2 * args.batch)
        for number in range(args.rounds):
            for name, (flags, each) in kinds.items():
                _, before = seconds(folder, *flags, each=each, steps=1) if flags[2:] and not number else (0, np.nan)
                step, sent = seconds(folder, *flags, each=each, steps=args.steps)
                measured[name].append((step, (sent - before) / (args.steps - 1) / 2))
                print(f'Round {number + 1}, {name}: {1000 * step:.0f} ms per step', file=sys.stderr, flush=True)
    one, apart = ([step for step, _ in measured[name]] for name in list(kinds)[:2])
    print('| | ms per step | speed-up | relative to two independent processes | MB sent per step and worker |')
    print('|' + ' --- |' * 5)
    for name, values in measured.items():
        steps = [step for step, _ in values]
        gains, reached = (np.divide(some, steps) for some in (one, apart))
        ratios = (spread(some, '{:.2f}') for some in (gains, reached))
        cells = spread(1000 * np.array(steps)), *ratios, f'{values[0][1]:.1f}'
        print(f'| {name} | ' + ' | '.join(cells).replace('nan', '') + ' |')
    for system in (['--system', 'oreilly'], ['--system', 'ranjan', '--precision', 'bf16']):
        settings = choose_settings(parse_arguments(system))
        plan(system_of(settings), parameters(settings), batch=128)


if __name__ == '__main__':
    main()
