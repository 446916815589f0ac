"""How is it learned? Trains a DCGAN and keeps everything of the run in one directory.

python train.py                              CelebA, downloaded on demand into data/
python train.py --data PATH                  a zip or a folder of your own pictures
python train.py --data demo                  faces drawn by the pretrained generator: nothing to download
python train.py --resume --run-dir runs/NAME  go on where a run stopped
"""

import contextlib
import datetime
import functools
import itertools
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cli
import cluster
import generate
import helper
import rundir
import show
from cluster import Cluster
from record import Record
from settings import choose_settings, chosen_system, list_systems, parse_arguments
from systems import System


class Graph(NamedTuple):
    """The training graph, and what a session runs of it."""

    graph: Any
    input_real: Any
    input_z: Any
    learning_rate: Any
    step: Any
    losses: Any
    train_opt: Any
    samples: Any
    refresh_statistics: Any
    weights_finite: Any
    initializer: Any
    saver: Any
    # Of several workers:
    stop: Any = None
    stops: Any = ()
    broadcast: Any = ()
    farewell: Any = ()


def build_graph(system: System, seed, xla=False, replicas=None) -> Graph:
    """Build everything that a run needs, once, and close the graph, so that nothing can make it grow.

    replicas: `replication.Replicas`, where several workers train together.
    """
    import dcgan
    import replication
    from runtime import tf

    with tf.Graph().as_default() as graph:
        tf.set_random_seed(seed)
        size = system.image_size
        input_real, input_z, learning_rate = dcgan.model_inputs(size, size, 3, system.latent_size)
        step = tf.train.get_or_create_global_step()
        ema = tf.train.ExponentialMovingAverage(system.ema, step) if system.ema else None
        with tf.xla.experimental.jit_scope(compile_ops=xla), replication.replicated(replicas):
            losses = dcgan.model_loss(system, input_real, input_z)
            train_opt = dcgan.model_opt(system, losses, learning_rate, ema)
        several = {}
        if replicas:
            stop = tf.placeholder(tf.float32, [], 'stop')
            losses, stops = replication.gather_losses(losses, stop, replicas)
            replication.order_reductions()
            patient = replicas._replace(timeout=cluster.START * replicas.timeout)
            several = {
                'stop': stop,
                'stops': stops,
                'broadcast': replication.broadcast(tf.global_variables(), patient),
                'farewell': replication.all_reduce(tf.zeros([]), replicas),
            }
        system = system._replace(precision='fp32')  # for what the training only shows
        built = Graph(
            graph=graph,
            input_real=input_real,
            input_z=input_z,
            learning_rate=learning_rate,
            step=step,
            losses=losses,
            train_opt=train_opt,
            samples=dcgan.generator(system, input_z, training=False, reuse=True, ema=ema),
            refresh_statistics=dcgan.refresh_statistics(system, input_z, ema),
            weights_finite=tf.reduce_all(
                [tf.reduce_all(tf.is_finite(variable)) for variable in tf.trainable_variables()]
            ),
            initializer=tf.global_variables_initializer(),
            saver=tf.train.Saver(max_to_keep=None),
            **several,
        )
        graph.finalize()
    return built


def batches(system: System, faces, seed, step, part=slice(None)):
    """Yield this `part` of the batches and latents of the steps that follow `step`, without end."""
    epoch_steps = len(helper.split(len(faces))[0]) // system.batch_size
    for epoch in itertools.count(step // epoch_steps):
        for images in helper.get_batches(faces, system.batch_size, seed, epoch, step % epoch_steps, part):
            latents = generate.draw_latents(system, np.random.default_rng((1, seed, step)), system.batch_size)
            yield images, latents[part]
            step += 1


def length(settings, faces) -> tuple[int, int]:
    """The steps of an epoch, over those of `faces` that are trained on, and of the whole run."""
    epoch_steps = len(helper.split(len(faces))[0]) // settings['batch_size']
    return epoch_steps, min(settings['steps'] or math.inf, (settings['epochs'] or math.inf) * epoch_steps)


def prefetch(items):
    """Yield what the iterator `items` yields; the next item is made while the last is in use."""
    with ThreadPoolExecutor(1) as thread:
        item = thread.submit(next, items)
        while True:
            ready = item.result()
            item = thread.submit(next, items)
            yield ready


def start_session(session, built: Graph, checkpoint: Path | None) -> int:
    """Initialise the weights, or restore those of `checkpoint`. Returns the number of steps done."""
    from runtime import tf

    if checkpoint is None:
        session.run(built.initializer)
        return 0
    try:
        built.saver.restore(session, str(checkpoint))
    except (tf.errors.OpError, ValueError):
        raise cli.UserError(f'{checkpoint} is damaged, or not a checkpoint of this run') from None
    return int(session.run(built.step))


def meet(session, built: Graph, members: Cluster) -> int:
    """Give all workers the chief's weights, and all that it saves, before their first step.

    So the others need no checkpoint. Returns the number of steps done.
    """
    with cluster.together(members):
        session.run(built.broadcast)
    return int(session.run(built.step))


def make_step(session, built: Graph, system: System, batch, stop, members: Cluster):
    """Make one training step with a batch, images and latents: this worker's part of it.

    Returns both losses, D(x) and D(G(z)) for each image of the whole batch, and whether to stop after this step,
    on which all workers agree. stop: see `cli.stop_on_signals`.
    """
    images, latents = batch
    feed = {built.input_real: images, built.input_z: latents, built.learning_rate: system.learning_rate}
    if members.several:
        feed[built.stop] = stop.is_set()
    with cluster.together(members):
        _, *outcome, stops = session.run([built.train_opt, *built.losses[:4], built.stops], feed)
    return *outcome, (stops > 0 if members.several else stop.is_set())


def train(
    settings, faces, run_dir=None, checkpoint: Path | None = None, preview=False, members=cluster.ALONE, replicas=None
):
    """Train until the epochs or steps of `settings` are over, or a signal asks to stop.

    settings: see `choose_settings`. faces: uint8 (N, H, W, 3). checkpoint: go on from there. preview: show the
    faces on the terminal, too. members, replicas: the workers that train together. Those that are not the chief take
    part in every step, and write nothing. Raises UserError when a loss or a weight is not finite.
    """
    system, seed = chosen_system(settings), settings['seed']
    epoch_steps, last_step = length(settings, faces)
    stop = cli.stop_on_signals()
    built = build_graph(system, seed, settings['xla'], replicas)
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(cluster.open_session(members, built.graph))
        step = start_session(session, built, checkpoint)
        record = None
        if members.chief:
            record = Record(stack, session, built, settings, faces, run_dir, step, (epoch_steps, last_step), preview)
        step = meet(session, built, members)
        ready = prefetch(batches(system, faces, seed, step, members.part(system.batch_size)))
        ready = stack.enter_context(contextlib.closing(ready))
        stopped = False
        while step < last_step and not stopped:
            began = time.perf_counter()
            *losses, d_real, d_fake, stopped = make_step(session, built, system, next(ready), stop, members)
            step += 1
            if record:
                speed = system.batch_size / (time.perf_counter() - began)
                record.add(step, losses, d_real, d_fake, speed, stopped or step == last_step)
        cluster.farewell(members, session, built.farewell)
    if not record:
        return
    if step < last_step:
        print(f'Stopped and saved at step {step}. To go on: python train.py --resume --run-dir {run_dir}')
    else:
        print(f'Done: {step} steps. To draw faces: python generate.py --checkpoint {run_dir}')
    print(f'Faces: {record.grid(step)}\nHow they came to be: {show.training_gif(run_dir)}')


def main():
    args = parse_arguments()
    if args.list_systems:
        print(list_systems())
        return
    if args.devices:
        import runtime

        print(runtime.devices())
        return
    if args.gif:
        print(f'How the faces came to be: {show.training_gif(args.run_dir)}')
        return
    members = cluster.from_environment(args.worker_timeout)
    if members.several and args.workers > 1:
        raise cli.UserError('--workers and TF_CONFIG: one of them')
    if members.several:
        cluster.run(functools.partial(work, args, members))
    if args.workers == 1:
        work(args, members)
        return
    settings, _ = rundir.find_run(args, several=True)
    Cluster(0, ('',) * args.workers).part(settings['batch_size'])

    def prepare():  # so that the workers find it done
        with contextlib.redirect_stdout(None):
            generate.load_data(settings, args.sources)

    cluster.launch(args.workers, args.worker_timeout, prepare, functools.partial(work, args))


def work(args, members: Cluster):
    """Train, as one of the workers: the run that the chief's flags mean."""
    run_dir, settings, run, checkpoint = args.run_dir, {}, {}, None
    if members.chief:
        settings, run = rundir.find_run(args, members.several)
        members.part(settings['batch_size'])
        if run:
            rundir.lock(run_dir)
            checkpoint = rundir.find_step(run_dir, args.resume)
    if members.several:
        members = cluster.start(members)
        own = choose_settings(args)
        settings = cluster.share(members, settings) | {'data_dir': own['data_dir']}
        settings |= {'data': own['data']} if args.data else {}
    faces = generate.load_data(settings, args.sources)
    training, held_out = helper.split(len(faces))
    if len(training) < settings['batch_size']:
        raise cli.UserError(
            f'{len(training)} images do not fill a batch of {settings["batch_size"]}: lower --batch-size'
        )
    if settings['evaluate_every'] and not len(held_out):
        raise cli.UserError(f'--evaluate-every: of {len(faces)} faces none is held out to compare with')
    if run and run['data_digest'] != helper.digest(faces):
        raise cli.UserError(f'{settings["data"]} does not hold the faces that the run began with: see --data')
    _, last_step = length(settings, faces)
    if checkpoint and int(checkpoint.name.split('-')[1]) >= last_step:
        raise cli.UserError(f'{checkpoint} has all of {last_step} steps: to go on, raise --epochs or --steps')
    if members.several and cluster.share(members, helper.digest(faces)) != helper.digest(faces):
        raise cli.UserError(f'{settings["data"]} does not hold the faces that the chief has: see --data')
    import runtime
    from replication import Replicas

    replicas = None
    if members.several:
        replicas = Replicas(
            members.size, members.rank, members.timeout, not args.local_batch_norm, args.reduce_precision
        )
    if not members.chief:
        train(settings, faces, members=members, replicas=replicas)
        return
    if not run:
        name = f'{settings["system"]}-{datetime.datetime.now():%Y%m%d-%H%M%S}'
        run_dir = run_dir or rundir.unused(Path('runs') / name)
        run_dir.mkdir(parents=True, exist_ok=True)
        rundir.lock(run_dir)
    workers = f'Workers: {members.size}. ' if members.several else ''
    print(f'Run: {run_dir}\nFaces: {len(training)}, and {len(held_out)} held out\n{workers}{runtime.devices()}')
    preview = args.preview and sys.stdout.isatty()
    try:
        train(settings, faces, run_dir, checkpoint, preview, members, replicas)
    except (OSError, runtime.tf.errors.ResourceExhaustedError) as error:  # no disk space, or no memory
        raise cli.UserError(f'stopped; all checkpoints in {run_dir} are whole. The reason: {error}') from None


if __name__ == '__main__':
    cli.run(main)
