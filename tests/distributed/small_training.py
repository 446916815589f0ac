"""A training of a few weights, run by tests: one process, or several workers by --workers or TF_CONFIG.

The chief prints a line of JSON after each step, and one at the end: losses, weights, whether the run was stopped.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from common import cli
from dcgan import Losses
from distributed.cluster import from_environment, shard_size
from distributed.launch import is_launcher, launch
from graph.random import random_uniform
from graph.replica import current_replica
from graph.session import tf

BATCH_SIZE = 8


def build(replica, args):
    """A convolution of images with a large mean, batch normalisation, dropout; all of it random by the step."""
    tf.set_random_seed(1)
    images = tf.placeholder(tf.float32, [None, 4, 4, 3])
    step = tf.train.get_or_create_global_step()
    with replica.scope(args.local_batch_norm):
        kernel = tf.get_variable('kernel', [3, 3, 3, 6], initializer=tf.random_normal_initializer())
        gamma = tf.get_variable('gamma', [6], initializer=tf.ones_initializer())
        beta = tf.get_variable('beta', [6], initializer=tf.zeros_initializer())
        x = tf.nn.conv2d(images, kernel, 1, 'SAME')
        x, mean, variance = current_replica().batch_norm(x + args.offset, gamma, beta, 1e-3)
        x *= random_uniform(tf.shape(x), 'dropout', 0.5, 1.5)
        logits = tf.reduce_mean(tf.tanh(x), axis=[1, 2, 3])[:, tf.newaxis]
        losses = Losses(tf.reduce_mean(tf.square(logits - 1)), tf.reduce_mean(logits), logits, -logits)
        variables = tf.trainable_variables()
        means = current_replica().mean(tf.gradients(losses.d_loss, variables))
        optimizer = tf.train.AdamOptimizer(0.01)
        train_opt = optimizer.apply_gradients(zip(means, variables, strict=True), step)
    return images, train_opt, replica.gather(losses), mean, variance


def train(args, replica, stop):
    settings = replica.broadcast({'seed': args.seed, 'chief': replica.index})
    rng = np.random.default_rng(settings['seed'])
    shard = replica.shard(BATCH_SIZE)
    if not replica.is_chief:
        time.sleep(args.hold)  # as if its data were slow
    if replica.index == args.fail_on:
        raise cli.UserError('this worker fails')
    with tf.Graph().as_default() as graph:
        images, train_opt, losses, mean, variance = build(replica, args)
        initializer = tf.global_variables_initializer()
        corrupt = tf.group([variable.assign(variable * 0 - 1) for variable in tf.global_variables()])
        graph.finalize()
        with replica.open_session(graph) as session:
            session.run(initializer)
            if not replica.is_chief:
                session.run(corrupt)  # the chief's values replace them
            replica.synchronize(session)
            step, stopped = 0, False
            while step < args.steps and not stopped:
                feed = {images: rng.normal(size=(BATCH_SIZE, 4, 4, 3))[shard]}
                fetches = [train_opt, losses, mean, variance]
                (_, values, *moments), stopped = replica.run(session, fetches, feed, stop)
                step += 1
                if replica.is_chief:
                    print(json.dumps({'step': step}))
                if replica.is_chief and step == 1:
                    hold_up(args.hold)
                time.sleep(args.pause)
            weights = session.run(tf.trainable_variables())
            replica.barrier(session)
    if replica.is_chief:
        result = {
            'settings': settings,
            'stopped': bool(stopped),
            'losses': [np.asarray(value).tolist() for value in values],
            'moments': [value.tolist() for value in moments],
            'weights': [value.tolist() for value in weights],
        }
        print(json.dumps(result))


def hold_up(seconds):
    """Sleep, then be busy."""
    time.sleep(seconds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def main():
    parser = cli.Parser(__doc__)
    parser.add_argument('--workers', type=int, default=1)
    parser.add_argument('--worker-timeout', type=float, default=60)
    parser.add_argument('--steps', type=int, default=5)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--offset', type=float, default=0)
    parser.add_argument('--pause', type=float, default=0)
    parser.add_argument('--hold', type=float, default=0, help='seconds that each worker is busy elsewhere for once')
    parser.add_argument('--fail-on', type=int, metavar='INDEX')
    parser.add_argument('--local-batch-norm', action='store_true')
    args = parser.parse_args()
    if is_launcher(args.workers):
        shard_size(BATCH_SIZE, args.workers)
        launch(args.workers, args.worker_timeout, lambda: None)
        return
    with from_environment(args.worker_timeout) as replica, cli.stop_on_signals() as stop:
        train(args, replica, stop)


if __name__ == '__main__':
    cli.run(main)
