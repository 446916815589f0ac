"""Measure whether a conditional generator draws faces with the attributes that are asked for.

    python benchmarks/attributes.py --data PATH                               the pretrained generator, some minutes
    python benchmarks/attributes.py --data PATH --checkpoint runs/NAME        your own run

Asks the feature network of evaluate.py, which was trained on the 40 attributes of CelebA, about held-out faces and
about generated ones. Prints a table with a row for each attribute of the run:
  share      percentage of the held-out faces with the attribute
  real       accuracy on held-out faces, %: the mean of faces with and faces without it
  with       generated faces with the attribute, of those that should have it, %
  without    generated faces without the attribute, of those that should not have it, %
  drawn      the mean of both; compare it with `real`; 50 is chance
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from metrics import features
from rundir import checkpoints
from rundir.run_json import read_run
from sampling.generator import PRETRAINED, draw_faces
from training.data import choose_hold_out, load_dataset


def classify(faces: np.ndarray) -> np.ndarray:
    """Whether the feature network sees each of its attributes on faces, uint8 (N, H, W, C): (N, 40)."""
    return features.extract(faces)[1] > 0.5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='the archive that the run was trained on')
    parser.add_argument('--checkpoint', type=Path, default=PRETRAINED, help='the run directory, or a checkpoint in it')
    parser.add_argument('--data-dir', default='data')
    parser.add_argument('--attribute-table')
    parser.add_argument('--count', type=int, default=1000, help='faces with and without each attribute (1000)')
    args = parser.parse_args()

    # The data of the run, which may lie elsewhere now.
    settings = read_run(checkpoints.locate(args.checkpoint)[0])['settings']
    settings |= {'data': str(Path(args.data).absolute()), 'data_dir': args.data_dir}
    settings |= {'attribute_table': args.attribute_table}
    if settings['hold_out'] == 'none':
        settings['hold_out'] = choose_hold_out(settings)
    with np.load(features.WEIGHTS) as saved:
        known = list(saved['attributes'])
    if unknown := [name for name in settings['attributes'] if name not in known]:
        sys.exit(f'the feature network does not know {", ".join(unknown)}, only {", ".join(known)}')
    dataset = load_dataset(settings)

    # The table.
    real, conditions = classify(dataset.faces[dataset.held_out]), dataset.conditions[dataset.held_out] > 0
    print(f'Data: {dataset}\n\n| attribute | share | real | with | without | drawn |\n|' + ' --- |' * 6)
    for name, has in zip(settings['attributes'], conditions.T, strict=True):
        index = known.index(name)
        on_real, on_drawn = [], []
        for value in (True, False):
            on_real.append((real[has == value, index] == value).mean())
            faces = np.concatenate(list(draw_faces(args.checkpoint, args.count, 0, wanted={name: value})))
            on_drawn.append((classify(faces)[:, index] == value).mean())
        cells = [has.mean(), np.mean(on_real), *on_drawn, np.mean(on_drawn)]
        print(f'| {name} | ' + ' | '.join(f'{100 * cell:.1f}' for cell in cells) + ' |', flush=True)


if __name__ == '__main__':
    main()
