"""Train the network whose features `evaluate.py` compares faces by, on the 40 attributes of CelebA.

    python benchmarks/features.py --data img_align_celeba.zip --table list_attr_celeba.zip --out features.npz

Writes the weights (pretrained/features.npz is such a file), and prints the accuracy for each attribute on held-out
faces: every tenth person, or every tenth image without an identity table next to the data. Half of each batch has the
crop and the size of `oreilly`, half those of `ranjan`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from common.cli import progress
from common.files import replacing
from config.settings import choose_settings, parse_arguments
from dataset.labels import open_table, read_columns
from graph.session import open_session, tf
from metrics.features import extract, face_features
from training.data import choose_hold_out, load_dataset

BATCH, STATISTICS_BATCH = 64, 2048
LEARNING_RATE = 2e-3  # at the start; it falls linearly to 0


def train(data: list[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, steps: int) -> dict[str, Any]:
    """Train on pairs of faces and the indices of those to train on; returns the weights as float16, by name."""
    rng = np.random.default_rng(0)
    with tf.Graph().as_default(), open_session() as session:
        # The network, on faces of two sizes.
        tf.set_random_seed(0)
        images = [tf.placeholder(tf.uint8, [None, *faces.shape[1:]]) for faces, _ in data]
        y = tf.placeholder(tf.float32, [None, labels.shape[1]])
        size = [max(faces.shape[1] for faces, _ in data)] * 2
        batch = tf.concat([tf.image.resize_bilinear(tf.cast(each, tf.float32), size) for each in images], axis=0)
        statistics: list = []
        _, logits = face_features(tf.image.random_flip_left_right(batch), True, statistics)

        # The loss and the optimiser.
        loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=logits))
        step = tf.train.get_or_create_global_step()
        rate = tf.train.polynomial_decay(LEARNING_RATE, step, steps, 0.0)
        train_opt = tf.train.AdamOptimizer(rate).minimize(loss, step)
        face_features(images[0])  # creates the variables of the statistics
        session.run(tf.global_variables_initializer())

        def feed(size):
            indices = [rng.choice(training, size // len(data)) for _, training in data]
            faces = {place: faces[chosen] for place, (faces, _), chosen in zip(images, data, indices, strict=True)}
            return faces | {y: labels[np.concatenate(indices)]}

        # Train, and store the batch norm statistics of a large batch.
        for _ in progress(iterable=range(steps), unit=' steps'):
            session.run(train_opt, feed(BATCH))
        session.run(statistics, feed(STATISTICS_BATCH))
        variables = [each for each in tf.global_variables() if each.op.name.split('/')[0] in ('features', 'attributes')]
        variables = [each for each in variables if 'Adam' not in each.op.name]
        return {each.op.name: session.run(each).astype(np.float16) for each in variables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--table', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--data-dir', type=Path, default=Path('data'))
    parser.add_argument('--steps', type=int, default=6000)
    args = parser.parse_args()

    # The data of both systems.
    names = read_columns(open_table(args.table))
    flags = ['--data', str(args.data), '--data-dir', str(args.data_dir), '--attribute-table', str(args.table)]
    systems = 'oreilly', 'ranjan'
    datasets = []
    for system in systems:
        settings = choose_settings(parse_arguments([*flags, '--system', system, '--attributes', *names]))
        datasets.append(load_dataset(settings | {'hold_out': choose_hold_out(settings)}))
    labels = datasets[0].conditions > 0

    # Train, and save the weights.
    weights = train([(dataset.faces, dataset.training) for dataset in datasets], labels, args.steps)
    with replacing(args.out) as temporary, open(temporary, 'wb') as file:
        np.savez_compressed(file, attributes=np.array(names), **weights)

    # The accuracy on held-out faces.
    print('| attribute | share | ' + ' | '.join(f'accuracy, {name}' for name in systems) + ' |\n' + '| --- ' * 4 + '|')
    right = [
        ((extract(each.faces[each.held_out], args.out)[1] > 0.5) == labels[each.held_out]).mean(axis=0)
        for each in datasets
    ]
    share = labels[datasets[0].held_out].mean(axis=0)
    for row in [*zip(names, share, *right, strict=True), ('mean', share.mean(), *(each.mean() for each in right))]:
        print(f'| {row[0]} | ' + ' | '.join(f'{100 * value:.1f} %' for value in row[1:]) + ' |')


if __name__ == '__main__':
    main()
