"""Train a DCGAN. Everything of a run is kept in one directory.

python train.py                               on CelebA, downloaded into data/ if it is not there
python train.py --data PATH                   on a zip or a folder of your own pictures
python train.py --data demo                   on faces drawn by a pretrained generator: nothing to download
python train.py --init-from runs/NAME         a new run that goes on from the weights of another
python train.py --resume --run-dir runs/NAME  go on where a run stopped
"""

import contextlib
import functools
import itertools
import math
import shlex
import time
from argparse import Namespace
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import dcgan
from common import cli, files
from config.settings import list_systems, parse_arguments, system_of
from distributed.cluster import from_environment
from distributed.launch import is_launcher, launch
from graph.replica import Replica
from graph.session import devices, enable_determinism, gpu_memory, has_fast_bfloat16, open_session, tf
from graph.steps import MIN_COMPILED, StoredFaces
from helper import get_batch, images_square_grid, to_uint8
from rundir import checkpoints
from rundir.transfer import initial_values
from sampling.latents import sample_latents
from training.curves import training_gif
from training.log import Recorder
from training.monitor import Evaluator, FailureMonitor
from training.run import Run, prepare_data, start_run

MAX_STEPS_PER_CALL = 100  # on a GPU
SECONDS_PER_CALL = 1.0  # so that Ctrl-C is answered
MAX_FED = 1 << 28  # bytes of images in a call
MAX_STORED = 0.25  # of the GPU's memory: what a data set may take there
TIMED_CALLS = 5  # that show whether XLA is faster
STATISTICS_BATCH = 512  # generated faces that the batch norm statistics of the samples are taken from


def build_graph(settings: dict, replica: Replica, steps_per_call: int = 1, stored: tuple = ()) -> SimpleNamespace:
    """Build all operations of a run, once, and finalize the graph so that nothing can make it grow.

    steps_per_call: how many steps a session call can make, on batches fed end to end. stored: the shape of the data
    set, to store it on the device: then a batch is fed as indices of its faces.
    Returns the placeholders, tensors and operations that `train` uses, by name.
    """
    system = system_of(settings)
    with tf.Graph().as_default() as graph:
        tf.set_random_seed(settings['seed'])
        height, width, channels = system.image_shape
        input_real, input_z, learning_rate = dcgan.model_inputs(width, height, channels, system.z_dim)
        faces = StoredFaces(stored) if stored else None
        batch = tf.placeholder(tf.int64, [None], 'indices') if stored else input_real
        count = tf.placeholder(tf.int32, [], 'count')  # of the steps in a call
        step = tf.train.get_or_create_global_step()
        ema = tf.train.ExponentialMovingAverage(system.ema, step) if system.ema else None

        def train_step(real, z) -> list:
            if faces:
                real = faces.get_batch(real)
            # XLA needs to know the shapes of what it differentiates twice, for R1.
            real = tf.ensure_shape(real, [system.batch_size // replica.count, *system.image_shape])
            with replica.scope(settings['local_batch_norm'], settings['reduce_precision']):
                losses = dcgan.model_loss(system, real, z)
                train_opt = dcgan.model_opt(system, losses, learning_rate, ema)
            losses = replica.gather(losses)
            with tf.control_dependencies([train_opt]):
                return [tf.identity(loss) for loss in losses[:4]]

        losses = replica.repeat(train_step, [batch, input_z], steps_per_call, count, settings['xla'])
        with tf.name_scope('weights_finite'):
            weights_finite = tf.reduce_all([tf.reduce_all(tf.is_finite(each)) for each in tf.trainable_variables()])
        system = replace(system, precision='fp32')  # for samples
        built = SimpleNamespace(
            graph=graph,
            faces=faces,
            batch=batch,
            input_z=input_z,
            learning_rate=learning_rate,
            count=count,
            losses=losses,
            step=step,
            samples=dcgan.generator(system, input_z, training=False, reuse=tf.AUTO_REUSE, ema=ema),
            store_statistics=dcgan.store_statistics(system, input_z, ema),
            weights_finite=weights_finite,
            initializer=tf.global_variables_initializer(),
            saver=tf.train.Saver(max_to_keep=None),
        )
        graph.finalize()
    return built


def batches(run: Run, step: int, shard: slice, pace: SimpleNamespace, stored: bool):
    """Yield what the calls that follow `step` are fed, without end: a number of steps, their batches, their latents.

    shard: which rows of each batch. pace: `steps` are made in a call if nothing is due before; with --xla zeros follow
    where there are fewer than `max_steps`. stored: batches of indices, not of images.
    """
    system, seed = run.system, run.settings['seed']
    first, start = divmod(step, run.steps_per_epoch)
    epochs = (
        run.dataset.get_indices(system.batch_size, seed, epoch, start if epoch == first else 0)
        for epoch in itertools.count(first)
    )
    order = itertools.chain.from_iterable(epochs)
    while True:
        steps = range(step, min(step + pace.steps, run.next_due(step)))
        indices = np.concatenate([next(order)[shard] for _ in steps])
        latents = np.concatenate(
            [sample_latents(system, np.random.default_rng((1, seed, n)), system.batch_size)[shard] for n in steps]
        )
        latents[:, system.latent_size :] = run.dataset.conditions[indices]  # those of the real faces, if there are any
        room = max(pace.max_steps, MIN_COMPILED) if run.settings['xla'] else len(steps)
        rest = (room - len(steps)) * (len(latents) // len(steps))
        fed = indices if stored else get_batch(run.dataset.faces, indices), latents
        yield len(steps), *(np.pad(each, [(0, rest)] + [(0, 0)] * (each.ndim - 1)) if rest else each for each in fed)
        step = steps.stop


def prefetch(iterator: Iterator) -> Generator:
    """Yield from `iterator`, and get the next item while the last one is in use."""
    with ThreadPoolExecutor(1) as thread:
        item = thread.submit(next, iterator)
        while True:
            ready = item.result()
            item = thread.submit(next, iterator)
            yield ready


def is_faster_with_xla(run: Run, steps_per_call: int, stored: tuple) -> bool:
    """Whether the first steps of a run are faster when XLA compiles them; says how long they take. Trains nothing.

    It is not where XLA fails, as it does without a part of CUDA that only it needs.
    """
    milliseconds = {}
    count = min(steps_per_call, run.next_due(0))
    pace = SimpleNamespace(steps=count, max_steps=count)
    _, batch, latents = next(batches(run, 0, slice(None), pace, bool(stored)))
    for xla in (False, True):
        graph = build_graph(run.settings | {'xla': xla}, Replica(), count, stored)
        feed = {graph.batch: batch, graph.input_z: latents, graph.count: count, graph.learning_rate: 0}
        with open_session(graph.graph) as session:
            fill(session, graph, run)
            times = []
            with contextlib.suppress(tf.errors.OpError):
                for _ in range(TIMED_CALLS + 1):
                    began = time.perf_counter()
                    session.run(graph.losses, feed)
                    times.append(time.perf_counter() - began)
            milliseconds[xla] = min(times[1:], default=math.inf) / count * 1000  # the first call compiles
    faster = milliseconds[True] < milliseconds[False]
    figures = f'{milliseconds[False]:.2f} ms a step without, {milliseconds[True]:.2f} with'
    print(f'XLA: {figures}, so the run is {"" if faster else "not "}compiled (--xla or --no-xla: no measurement)')
    return faster


def train(run: Run, replica: Replica) -> int:
    """Train until the run's last step, or until a signal asks to stop. Only the chief writes and prints.

    Returns the number of steps made in all. Raises UserError when a loss or a weight is not finite.
    """
    system, seed = run.system, run.settings['seed']
    if run.settings['deterministic']:
        enable_determinism()
    memory = gpu_memory()
    steps_per_call = run.settings['steps_per_call'] or (MAX_STEPS_PER_CALL if memory and replica.count == 1 else 1)
    stored = run.dataset.faces.nbytes < MAX_STORED * memory
    if not stored:
        batch_bytes = 4 * system.batch_size * math.prod(run.dataset.faces.shape[1:])
        steps_per_call = max(1, min(steps_per_call, MAX_FED // batch_bytes))
    shape = run.dataset.faces.shape if stored else ()
    if run.settings['xla'] is None:
        run.settings['xla'] = bool(memory) and replica.count == 1 and is_faster_with_xla(run, steps_per_call, shape)
    graph = build_graph(run.settings, replica, steps_per_call, shape)
    sample_z = sample_latents(system, np.random.default_rng(seed), system.samples)  # as `generate.py --seed SEED`
    statistics_z = sample_latents(system, np.random.default_rng((2, seed)), STATISTICS_BATCH)
    stop = cli.stop_on_signals()
    with replica.open_session(graph.graph) as session, contextlib.ExitStack() as stack:
        step = initialize(session, graph, run, replica)
        if replica.is_chief:
            recorder = stack.enter_context(Recorder(run, step))
            evaluator, monitor = Evaluator(run), FailureMonitor(run, step)
            save = functools.partial(checkpoints.save, session, graph.saver, run.directory)
            if step == 0:
                session.run(graph.store_statistics, {graph.input_z: statistics_z})
                recorder.show_start(graph.graph, show_generator_output(session, graph, sample_z, run.grid(0)))
        pace = SimpleNamespace(steps=1, max_steps=steps_per_call)
        shard = replica.shard(system.batch_size)
        ready = stack.enter_context(contextlib.closing(prefetch(batches(run, step, shard, pace, stored))))
        last = False
        while not last:
            began = time.perf_counter()
            count, batch, latents = next(ready)
            feed = {graph.count: count, graph.batch: batch, graph.input_z: latents}
            feed[graph.learning_rate] = system.learning_rate
            losses, stopped = replica.run(session, graph.losses, feed, stop)
            losses = [each[:count] for each in losses]
            seconds = (time.perf_counter() - began) / count
            pace.steps = min(max(1, int(SECONDS_PER_CALL / seconds)), pace.max_steps)
            step += count
            last = stopped or step == run.last_step
            if not replica.is_chief:
                continue
            due = run.due(step, last)
            check_finite(session, graph, run, step, losses, weights=bool(due))
            if due:
                session.run(graph.store_statistics, {graph.input_z: statistics_z})
            distance = evaluator.evaluate(session, graph, step, recorder) if 'evaluate' in due else None
            recorder.add_steps(step, losses, system.batch_size / seconds, distance)
            if distance is not None and evaluator.is_best(distance):
                save('best', step, monitor.healthy)
            if 'save' in due:
                save('step', step, monitor.healthy)
            if 'keep' in due:
                save('keep', step, monitor.healthy)
            if 'sample' in due:  # every 400 steps in the article
                faces = show_generator_output(session, graph, sample_z, run.grid(step))
                d_loss = recorder.print_losses(step, faces)
                monitor.check(step, d_loss, faces, recorder)
        replica.barrier(session)
    return step


def fill(session, graph: SimpleNamespace, run: Run, values: dict | None = None) -> None:
    """Initialise the weights, and store the faces if the graph has a place for them.

    values: initial weights by their tensors, in place of random ones.
    """
    session.run(graph.initializer, values)
    if graph.faces:
        graph.faces.load(run.dataset.faces, session)


def initialize(session, graph: SimpleNamespace, run: Run, replica: Replica) -> int:
    """Initialise the weights, or restore those of the run's checkpoint; returns the number of steps made.

    The chief's initial weights may come from another run, and become those of all replicas.
    """
    values, init_from = {}, run.settings['init_from']
    if init_from and not run.checkpoint and replica.is_chief:
        values = initial_values(Path(init_from), graph.graph, dcgan.frozen_scopes(run.system))
    fill(session, graph, run, values)
    if run.checkpoint:
        checkpoints.restore(session, graph.saver, run.checkpoint)
    if replica.is_chief:
        run.open_directory()
    replica.synchronize(session)
    return int(session.run(graph.step))


def check_finite(session, graph: SimpleNamespace, run: Run, step: int, losses, weights: bool) -> None:
    """Raise UserError unless the losses of the steps up to `step` are finite, and the `weights` if they are due."""
    (bad,) = np.nonzero([not all(np.isfinite(loss).all() for loss in of_step) for of_step in zip(*losses, strict=True)])
    if len(bad) or (weights and not session.run(graph.weights_finite)):
        step -= len(losses[0]) - 1 - bad[0] if len(bad) else 0
        raise cli.UserError(
            f'the training diverged: not finite at step {step}. The checkpoints in {run.directory} are from before: '
            'go on from one with --resume, or start again with a lower --learning-rate'
        )


def show_generator_output(session, graph: SimpleNamespace, latents: np.ndarray, path: Path) -> np.ndarray:
    """Draw faces and save them as a grid, a PNG file; returns them, uint8 (N, H, W, C)."""
    faces = to_uint8(session.run(graph.samples, {graph.input_z: latents}), (-1, 1))
    with files.replacing(path) as temporary:
        images_square_grid(faces).save(temporary)
    return faces


def main() -> None:
    args = parse_arguments()
    if args.list_systems:
        print(list_systems())
    elif args.devices:
        print(devices())
    elif args.gif:
        print(f'How the faces came to be: {training_gif(args.run_dir)}')
    elif is_launcher(args.workers):
        launch(args.workers, args.worker_timeout, prepare=functools.partial(prepare_data, args))
    else:
        with from_environment(args.worker_timeout) as replica:
            run_training(args, replica)


def run_training(args: Namespace, replica: Replica) -> None:
    """Train as the flags say, and tell the user about it."""
    run = start_run(args, replica)
    if replica.is_chief:
        workers = f'Workers: {replica.count}. ' if replica.count > 1 else ''
        print(f'Run: {run.directory}\nFaces: {run.dataset}')
        if run.system.attributes:
            shares = (run.dataset.conditions[run.dataset.training] > 0).mean(axis=0)
            print('Attributes: ' + ', '.join(map('{} {:.0%}'.format, run.system.attributes, shares)))
        print(f'{workers}{devices()} Precision: {run.system.precision}.')
        if run.system.precision == 'bf16' and not has_fast_bfloat16():
            print('Warning: this machine has no bfloat16 units, so fp32 would be several times faster than bf16')
    try:
        step = train(run, replica)
    except (OSError, tf.errors.ResourceExhaustedError) as error:  # no disk space, or no memory
        intact = f'all checkpoints in {run.directory} are intact. ' if replica.is_chief else ''
        raise cli.UserError(f'stopped; {intact}The reason: {error}') from None
    if replica.is_chief:
        print_end(run, step)
    if step < run.last_step:
        raise SystemExit(cli.STOPPED)


def print_end(run: Run, step: int) -> None:
    """Say how far the run has come, and what to do next."""
    quoted = shlex.quote(str(run.directory))
    if step < run.last_step:
        print(f'Stopped and saved at step {step}. To go on: python train.py --resume --run-dir {quoted}')
    else:
        print(f'Done: {step} steps. To draw faces: python generate.py --checkpoint {quoted}')
    print(f'Faces: {run.grid(step)}\nHow they came to be: {training_gif(run.directory)}')


if __name__ == '__main__':
    cli.run(main)
