"""Does a long training stay as it is? Resident memory, operations in the graph and open files, step by step.

    python benchmarks/soak.py [--steps 20000]      (some minutes; Linux, for /proc)

Trains by `train.train` itself, with `--width` so small that steps are short, and ends with status 1
if the memory at the end differs from that after step 1,000 by 2 % or more, or if anything else has grown.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import record  # noqa: E402
import train  # noqa: E402
from settings import choose_settings, parse_arguments  # noqa: E402

WIDTH = 0.02  # of all layers: some channels
WARM_UP = 1000  # steps
EVERY = 500  # steps between figures
MOST_GROWTH = 0.02  # of the resident memory


def resident() -> float:
    """The process's resident memory, MB."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6


def main():
    parser = argparse.ArgumentParser(description='Watch a long training.')
    parser.add_argument('--steps', type=int, default=20_000, help=f'how many, at least {2 * WARM_UP} (20000)')
    args = parser.parse_args()
    faces = np.random.default_rng(0).integers(0, 256, (400, 28, 28, 3), dtype=np.uint8)
    figures = {}
    show = record.show_generator_output

    def show_and_measure(session, built, latents, path):
        step = int(path.stem.removeprefix('step-'))
        operations = len(built.graph.get_operations())
        figures[step] = resident(), operations, len(os.listdir('/proc/self/fd'))
        print('{:8}{:12.1f}{:12}{:8}'.format(step, *figures[step]), file=sys.stderr)
        return show(session, built, latents, path)

    record.show_generator_output = show_and_measure
    print(f'{"step":>8}{"memory, MB":>12}{"operations":>12}{"files":>8}', file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, 'w') as nowhere:
        flags = f'--width {WIDTH} --batch-size 4 --steps {args.steps}'
        flags += f' --sample-every {EVERY} --checkpoint-every {EVERY}'
        settings = choose_settings(parse_arguments(flags.split()))
        with contextlib.redirect_stdout(nowhere):
            train.train(settings, faces, Path(folder))
    before, after = figures[WARM_UP], figures[args.steps]
    growth = after[0] / before[0] - 1
    print(
        f'From step {WARM_UP} to {args.steps}: memory {before[0]:.1f} to {after[0]:.1f} MB ({growth:+.2%}), '
        f'operations {before[1]} to {after[1]}, open files {before[2]} to {after[2]}'
    )
    sys.exit(abs(growth) >= MOST_GROWTH or after[1] > before[1] or after[2] > before[2])


if __name__ == '__main__':
    main()
