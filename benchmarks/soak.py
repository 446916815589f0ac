"""Watch a long training: resident memory, operations in the graph and open files.

    python benchmarks/soak.py [--steps 20000]      (some minutes; Linux, for /proc)

Trains by `train.train` itself, with a `--width` so small that steps are short. Ends with status 1 if the memory at the
end differs by 2% or more from that after step 1,000, or if anything else has grown.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import train
from config.settings import choose_settings, parse_arguments
from graph.replica import Replica
from helper import Dataset
from training.run import Run

WIDTH = 0.02  # of all layers: a few channels
WARM_UP = 1000  # steps
EVERY = 500  # steps between figures
MAX_GROWTH = 0.02  # of the resident memory


def resident() -> float:
    """The resident memory of this process, MB."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description='Watch a long training.')
    parser.add_argument('--steps', type=int, default=20_000, help=f'at least {2 * WARM_UP} (20000)')
    args = parser.parse_args()
    faces = np.random.default_rng(0).integers(0, 256, (400, 28, 28, 3), dtype=np.uint8)
    figures = {}
    show = train.show_generator_output

    def show_and_measure(session, graph, latents, path):
        step = int(path.stem.removeprefix('step-'))
        figures[step] = resident(), len(graph.graph.get_operations()), len(os.listdir('/proc/self/fd'))
        print('{:8}{:12.1f}{:12}{:8}'.format(step, *figures[step]), file=sys.stderr)
        return show(session, graph, latents, path)

    train.show_generator_output = show_and_measure
    print(f'{"step":>8}{"memory, MB":>12}{"operations":>12}{"files":>8}', file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, 'w') as nowhere:
        flags = f'--width {WIDTH} --batch-size 4 --steps {args.steps}'
        flags += f' --sample-every {EVERY} --checkpoint-every {EVERY}'
        settings = choose_settings(parse_arguments(flags.split()))
        with contextlib.redirect_stdout(nowhere):
            train.train(Run(settings, Dataset(faces), Path(folder)), Replica())
    before, after = figures[WARM_UP], figures[args.steps]
    growth = after[0] / before[0] - 1
    print(
        f'From step {WARM_UP} to {args.steps}: memory {before[0]:.1f} to {after[0]:.1f} MB ({growth:+.2%}), '
        f'operations {before[1]} to {after[1]}, open files {before[2]} to {after[2]}'
    )
    sys.exit(abs(growth) >= MAX_GROWTH or after[1] > before[1] or after[2] > before[2])


if __name__ == '__main__':
    main()
