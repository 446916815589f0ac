"""Measure whether a conditional generator draws faces with the attributes that are asked for.

    python benchmarks/attributes.py --data PATH --checkpoint runs/NAME        (some minutes on one core)

Trains a classifier of the run's attributes on the run's training faces, and applies it to held-out faces and to
generated ones. Prints a table with a row for each attribute:
  share      percentage of the held-out faces with the attribute
  real       accuracy on held-out faces, %: the mean of faces with and faces without it
  with       generated faces with the attribute, of those that should have it, %
  without    generated faces without the attribute, of those that should not have it, %
  drawn      the mean of both; compare it with `real`; 50 is chance
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from common import cli
from dcgan import network
from graph.augment import flip
from graph.session import open_session, tf
from metrics.swd import chunks
from rundir import checkpoints
from rundir.run_json import read_run, system_of_run
from sampling.generator import draw_faces
from systems import Layer
from training.data import choose_hold_out, load_dataset

LAYERS = (*(Layer('conv2d', channels, kernel=3, stride=2) for channels in (32, 64, 128)), Layer('dense', (128,)))
BATCH = 64


def train_classifier(system, dataset, steps: int):
    """Train for `steps`. Returns a function from faces, uint8 (N, H, W, C), to booleans (N, attributes)."""
    rng = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        # The network.
        tf.set_random_seed(0)
        faces = tf.placeholder(tf.uint8, [None, *system.image_shape])
        labels = tf.placeholder(tf.float32, [None, len(system.attributes)])
        mirrored = tf.placeholder_with_default(0.0, [])  # a probability
        images = flip(tf.cast(faces, tf.float32) * (2 / 255) - 1, mirrored)
        layers = (*LAYERS, Layer('dense', (len(system.attributes),), activation=None))
        plain = replace(system, precision='fp32', weight_stddev=0.0, dropout=0.0)
        logits = network(plain, layers, images, training=True)

        # The loss, weighted as if half of the faces had each attribute: some are rare.
        shares = (dataset.conditions[dataset.training] > 0).mean(axis=0)
        weights = labels * (0.5 / shares) + (1 - labels) * (0.5 / (1 - shares))
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
        step = tf.train.get_or_create_global_step()
        rate = tf.train.cosine_decay(1e-3, step, steps)
        train_opt = tf.train.AdamOptimizer(rate).minimize(tf.reduce_mean(weights * losses), step)
        session = open_session(graph)
        session.run(tf.global_variables_initializer())

    for _ in cli.progress(iterable=range(steps), desc='Classifier', unit=' steps'):
        batch = rng.choice(dataset.training, BATCH)
        session.run(train_opt, {faces: dataset.faces[batch], labels: dataset.conditions[batch] > 0, mirrored: 0.5})
    return lambda images: np.concatenate(
        [session.run(logits, {faces: images[chunk]}) > 0 for chunk in chunks(*images.shape[:3])]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='the archive that the run was trained on')
    parser.add_argument('--checkpoint', required=True, type=Path, help='the run directory, or a checkpoint in it')
    parser.add_argument('--data-dir', default='data')
    parser.add_argument('--attribute-table')
    parser.add_argument('--steps', type=int, default=3000, help='training steps of the classifier (3000)')
    parser.add_argument('--count', type=int, default=1000, help='faces with and without each attribute (1000)')
    args = parser.parse_args()

    # The run, and its data, which may lie elsewhere now.
    run = read_run(checkpoints.locate(args.checkpoint)[0])
    system, settings = system_of_run(run), run['settings']
    settings |= {'data': str(Path(args.data).absolute()), 'data_dir': args.data_dir}
    settings |= {'attribute_table': args.attribute_table}
    if settings['hold_out'] == 'none':
        settings['hold_out'] = choose_hold_out(settings)
    dataset = load_dataset(settings)

    # The table.
    classify = train_classifier(system, dataset, args.steps)
    real, has = classify(dataset.faces[dataset.held_out]), dataset.conditions[dataset.held_out] > 0
    print(f'Data: {dataset}\n\n| attribute | share | real | with | without | drawn |\n|' + ' --- |' * 6)
    for index, name in enumerate(system.attributes):
        on_real, on_drawn = [], []
        for value in (True, False):
            on_real.append((real[has[:, index] == value, index] == value).mean())
            faces = np.concatenate(list(draw_faces(args.checkpoint, args.count, 0, wanted={name: value})))
            on_drawn.append((classify(faces)[:, index] == value).mean())
        cells = [has[:, index].mean(), np.mean(on_real), *on_drawn, np.mean(on_drawn)]
        print(f'| {name} | ' + ' | '.join(f'{100 * cell:.1f}' for cell in cells) + ' |', flush=True)


if __name__ == '__main__':
    main()
