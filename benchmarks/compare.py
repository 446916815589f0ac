"""Which value of a flag gives better faces, in the same time or in the same number of steps?

    python benchmarks/compare.py --data PATH --minutes 8 --flag update-order alternating simultaneous
    python benchmarks/compare.py --data PATH --steps 3000 --batch-size 32 --flag precision fp32 bf16 --keep DIR

Trains with each value of the flag, side by side with one process each, and measures how far the faces they draw
are from the real ones: the sliced Wasserstein distance (Rabin et al., 2011; x1000) between whole images and
between 7x7 patches. Real faces against other real faces give the floor.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import generate  # noqa: E402
import helper  # noqa: E402

FACES = 4096  # drawn from each generator, and compared with as many real ones


def sliced_wasserstein(a, b, projections=512):
    """Mean distance between the sorted projections of two sets of as many vectors (n, d)."""
    directions = np.random.default_rng(0).standard_normal((a.shape[1], projections)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=0)
    return np.abs(np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)).mean()


def distances(faces, real):
    """Sliced Wasserstein distances x1000 of uint8 images (N, H, W, 3): of whole images, of 7x7 patches."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, faces.shape[1] - 6, (len(faces) * 8, 2))
    image = np.repeat(np.arange(len(faces)), 8)

    def patches(images):
        return np.stack([images[i, y : y + 7, x : x + 7] for i, (y, x) in zip(image, corners, strict=True)])

    pairs = (faces, real), (patches(faces), patches(real))
    return [1000 * sliced_wasserstein(*(x.reshape(len(x), -1) / np.float32(255) for x in pair)) for pair in pairs]


def compare(args, folder: Path):
    """Train and print a line for each value and seed."""
    cache = folder / 'data'
    real = np.random.default_rng(0).permutation(helper.load_faces(args.data, 28, cache / 'prepared'))
    print(f'{"":24}{"steps":>8}{"images":>10}{"patches":>10}')
    print('{:32}{:10.2f}{:10.2f}'.format('real', *distances(real[-FACES:], real[:FACES])))
    flag, *values = args.flag
    for seed in args.seeds:
        runs = {value: folder / f'{flag}-{value}-{seed}' for value in values}
        command = [sys.executable, ROOT / 'train.py', '--data', args.data, '--data-dir', cache, '--seed', str(seed)]
        command += ['--batch-size', str(args.batch_size)]
        command += ['--steps', str(args.steps)] if args.steps else ['--epochs', '1000000']
        trainings = [
            subprocess.Popen([*command, '--run-dir', run, f'--{flag}', value], stdout=subprocess.DEVNULL)
            for value, run in runs.items()
        ]
        if not args.steps:
            time.sleep(60 * args.minutes)
            for training in trainings:
                training.send_signal(signal.SIGTERM)
        for training in trainings:
            training.wait()
        for value, run in runs.items():
            faces = np.concatenate(list(generate.draw_faces(run, FACES, seed=0)))
            steps = (run / 'log.csv').read_text().count('\n') - 1
            print(
                f'{value:18}seed {seed}{steps:8}{{:10.2f}}{{:10.2f}}'.format(*distances(faces, real[:FACES])),
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True)
    parser.add_argument('--flag', nargs='+', required=True, metavar=('FLAG', 'VALUE'))
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument('--minutes', type=float)
    length.add_argument('--steps', type=int)
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--keep', type=Path, help='keep the run directories in this folder')
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        compare(args, args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory())))


if __name__ == '__main__':
    main()
