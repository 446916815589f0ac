"""Measure whether a conditional generator draws the attributes that it is asked for.

    python benchmarks/attributes.py --data PATH --checkpoint runs/NAME        (some minutes on one core)

A classifier of the run's attributes is trained on the real faces that the run trained on, and judges held-out real
faces and generated ones. For each attribute the table has
  share:     of the held-out faces that have it
  real:      balanced accuracy on held-out faces, %: the mean of those on faces with it and without it
  with:      generated faces asked for it that have it, %
  without:   generated faces asked not to have it that do not, %
  drawn:     balanced accuracy on them, %: compare it with that on real faces; 50 is chance
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from common import cli  # noqa: E402
from graph.augment import flip  # noqa: E402
from graph.layers import network  # noqa: E402
from graph.session import open_session, tf  # noqa: E402
from metrics.swd import chunks  # noqa: E402
from rundir import checkpoints  # noqa: E402
from rundir.run_json import read_run, system_of_run  # noqa: E402
from sampling.generator import draw_faces  # noqa: E402
from systems import Layer  # noqa: E402
from training.data import choose_hold_out, load_dataset  # noqa: E402

LAYERS = (
    Layer('conv2d', 32, kernel=3, stride=2),
    Layer('conv2d', 64, kernel=3, stride=2),
    Layer('conv2d', 128, kernel=3, stride=2),
    Layer('dense', (128,)),
)
BATCH = 64


def classifier(system, faces):
    """Logits (N, attributes) of faces, uint8 (N, H, W, 3), and their placeholder for mirroring: a probability."""
    images = tf.cast(faces, tf.float32) * (2 / 255) - 1
    probability = tf.placeholder_with_default(0.0, [])
    layers = (*LAYERS, Layer('dense', (len(system.attributes),), activation=None))
    plain = replace(system, precision='fp32', weight_stddev=0.0, dropout=0.0)
    return network(plain, layers, flip(images, probability), training=True), probability


def trained(system, dataset, steps: int):
    """A function that says which attributes faces have, (N, attributes) of booleans, after a training of `steps`."""
    rng = np.random.default_rng(0)
    shares = (dataset.conditions[dataset.training] > 0).mean(axis=0)
    with tf.Graph().as_default() as graph:
        tf.set_random_seed(0)
        faces = tf.placeholder(tf.uint8, [None, *dataset.faces.shape[1:]])
        labels = tf.placeholder(tf.float32, [None, len(system.attributes)])
        logits, probability = classifier(system, faces)
        # As if half of the faces had each attribute: or else it would see rare ones too rarely.
        weights = tf.where(labels > 0, tf.ones_like(labels) * (0.5 / shares), tf.ones_like(labels) * 0.5 / (1 - shares))
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
        step = tf.train.get_or_create_global_step()
        rate = tf.train.cosine_decay(1e-3, step, steps)
        train_opt = tf.train.AdamOptimizer(rate).minimize(tf.reduce_mean(weights * losses), step)
        session = open_session(graph)
        session.run(tf.global_variables_initializer())
    with cli.progress(desc='Classifier', total=steps, unit=' steps') as bar:
        for _ in range(steps):
            batch = rng.choice(dataset.training, BATCH)
            feed = {faces: dataset.faces[batch], labels: dataset.conditions[batch] > 0, probability: 0.5}
            session.run(train_opt, feed)
            bar.update()
    return lambda images: np.concatenate(
        [session.run(logits, {faces: images[chunk]}) > 0 for chunk in chunks(*images.shape[:3])]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='the archive that the run was trained on')
    parser.add_argument('--checkpoint', required=True, type=Path, help='the run directory, or a checkpoint in it')
    parser.add_argument('--data-dir', default='data')
    parser.add_argument('--attribute-table')
    parser.add_argument('--steps', type=int, default=3000, help='of the training of the classifier (3000)')
    parser.add_argument('--count', type=int, default=1000, help='faces with and without each attribute (1000)')
    args = parser.parse_args()
    run = read_run(checkpoints.find(args.checkpoint)[0])
    system, settings = system_of_run(run), run['settings']
    settings |= {'data': str(Path(args.data).absolute()), 'data_dir': args.data_dir}
    settings |= {'attribute_table': args.attribute_table}
    if settings['hold_out'] == 'none':
        settings['hold_out'] = choose_hold_out(settings)
    dataset = load_dataset(settings)
    classify = trained(system, dataset, args.steps)
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
