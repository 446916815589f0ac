"""Which order of updates gives better faces in the same time?

    python benchmarks/update_order.py --data PATH [--minutes 12] [--seeds 0 1]

Trains with both orders side by side, one process each, for so many minutes, and measures how far the faces
they draw are from the real ones: the sliced Wasserstein distance (Rabin et al., 2011; x1000) between whole
images and between 7x7 patches. Real faces against other real faces give the floor.
"""

import argparse
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

ORDERS = ('alternating', 'simultaneous')
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True)
    parser.add_argument('--minutes', type=float, default=12)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / 'data'
        real = np.random.default_rng(0).permutation(helper.load_faces(args.data, 28, cache / 'prepared'))
        print(f'{"":24}{"steps":>8}{"images":>10}{"patches":>10}')
        print('{:32}{:10.2f}{:10.2f}'.format('real', *distances(real[-FACES:], real[:FACES])))
        for seed in args.seeds:
            runs = {order: Path(folder) / f'{order}-{seed}' for order in ORDERS}
            trainings = [
                subprocess.Popen(
                    [sys.executable, ROOT / 'train.py', '--data', args.data, '--data-dir', cache, '--seed', str(seed),
                     '--epochs', '1000', '--update-order', order, '--run-dir', run],
                    stdout=subprocess.DEVNULL,
                )
                for order, run in runs.items()
            ]  # fmt: skip
            time.sleep(60 * args.minutes)
            for training in trainings:
                training.send_signal(signal.SIGTERM)
            for training in trainings:
                training.wait()
            for order, run in runs.items():
                faces = np.concatenate(list(generate.draw_faces(run, FACES, seed=0)))
                steps = (run / 'log.csv').read_text().count('\n') - 1
                print(f'{order:18}seed {seed}{steps:8}{{:10.2f}}{{:10.2f}}'.format(*distances(faces, real[:FACES])))


if __name__ == '__main__':
    main()
