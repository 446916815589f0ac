"""Train a DCGAN. Everything of a run is kept in one directory.

python train.py                               on CelebA, downloaded into data/ if it is not there
python train.py --data PATH                   on a zip or a folder of your own pictures
python train.py --data demo                   on faces drawn by a pretrained generator: nothing to download
python train.py --init-from runs/NAME         a new run that starts from the weights of another run
python train.py --resume --run-dir runs/NAME  resume a run where it stopped
"""

import contextlib
import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Python leaves out this folder with -P and -I. `common` comes first, because it checks the installation.
sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import cli, files

# isort: split
import numpy as np

import dcgan
from config.settings import list_systems, parse_arguments, system_of
from distributed.cluster import from_environment
from distributed.launch import is_launcher, launch
from graph.replica import Replica
from graph.session import devices, enable_determinism, has_fast_bfloat16, tf
from graph.steps import StoredFaces
from helper import images_square_grid, to_uint8
from rundir import checkpoints
from rundir.transfer import initial_values
from training.calls import Calls
from training.chief import Chief
from training.curves import training_gif
from training.run import Run, prepare_data, start_run


class TrainingGraph(NamedTuple):
    """The operations of a run that the training uses."""

    graph: Any  # the finalized tf.Graph
    faces: StoredFaces | None  # all faces, if they lie on the device
    batch: Any  # placeholder: the real images of each step of a call, or the indices of stored faces
    input_z: Any  # placeholder: the latents of each step
    learning_rate: Any  # placeholder
    count: Any  # placeholder: the number of steps in a call
    losses: dcgan.Losses  # of each step; fetching one makes the steps
    step: Any  # the number of steps made
    samples: Any  # faces of `input_z` in -1..1, drawn with the averaged weights
    store_statistics: Any  # see `dcgan.store_statistics`
    weights_finite: Any  # whether all weights are finite
    initializer: Any  # initialises all variables
    saver: Any

    def initialize(self, session, faces: np.ndarray, values: dict | None = None) -> None:
        """Initialise the weights, and store the faces if there is room for them on the device.

        values: initial weights by the tensors that they replace.
        """
        session.run(self.initializer, values)
        if self.faces:
            self.faces.load(faces, session)


def build_graph(settings: dict, replica: Replica, steps_per_call: int = 1, stored_shape: tuple = ()) -> TrainingGraph:
    """Build all operations of a run, once, and finalize the graph so that nothing can make it grow.

    steps_per_call: the most steps that a session call makes. stored_shape: the shape of the faces if they are to lie on
    the device; each batch is then fed as the indices of its faces.
    """
    system = system_of(settings)
    if settings['deterministic']:
        enable_determinism()
    with tf.Graph().as_default() as graph:
        tf.set_random_seed(settings['seed'])

        # Placeholders: the article's, and the number of steps.
        height, width, channels = system.image_shape
        input_real, input_z, learning_rate = dcgan.model_inputs(width, height, channels, system.z_dim)
        faces = StoredFaces(stored_shape) if stored_shape else None
        batch = tf.placeholder(tf.int64, [None], 'indices') if faces else input_real
        count = tf.placeholder(tf.int32, [], 'count')
        step = tf.train.get_or_create_global_step()
        ema = tf.train.ExponentialMovingAverage(system.ema, step) if system.ema else None

        # The training step, repeated within a call.
        def training_step(batch, z) -> dcgan.Losses:
            images = faces.get_batch(batch) if faces else batch
            # XLA needs to know the shapes of what it differentiates twice, for R1.
            images = tf.ensure_shape(images, [system.batch_size // replica.count, *system.image_shape])
            with replica.scope(settings['local_batch_norm']):
                return dcgan.training_step(system, images, z, learning_rate, ema)

        inputs, shapes = [batch, input_z], list(dcgan.LOSS_SHAPES)
        losses = replica.repeat(training_step, inputs, shapes, steps_per_call, count, settings['xla'])

        # Samples, checks, checkpoints.
        with tf.name_scope('weights_finite'):
            finite = [tf.reduce_all(tf.is_finite(variable)) for variable in tf.trainable_variables()]
            weights_finite = tf.reduce_all(finite)
        built = TrainingGraph(
            graph=graph,
            faces=faces,
            batch=batch,
            input_z=input_z,
            learning_rate=learning_rate,
            count=count,
            losses=dcgan.Losses(*losses),
            step=step,
            samples=dcgan.generator(system, input_z, training=False, reuse=tf.AUTO_REUSE, ema=ema),
            store_statistics=dcgan.store_statistics(system, input_z, ema),
            weights_finite=weights_finite,
            initializer=tf.global_variables_initializer(),
            saver=tf.train.Saver(max_to_keep=None),
        )
        graph.finalize()
    return built


def train(run: Run, replica: Replica, on_samples: Callable[[np.ndarray], Any] = lambda faces: None) -> int:
    """Train until the run's last step, or until a signal asks to stop. Only the chief writes and prints.

    on_samples: called with the faces of each grid, uint8 (N, H, W, C). Returns the number of steps made in all.
    Raises UserError when a loss or a weight is not finite.
    """
    # Build the graph, once.
    calls = Calls(run, replica)
    calls.choose_xla(build_graph)
    model = build_graph(run.settings, replica, calls.max_steps, calls.stored_shape)

    with replica.open_session(model.graph) as session, cli.stop_on_signals() as stop, contextlib.ExitStack() as stack:
        # Start from random weights, or from a checkpoint. The chief logs, evaluates and saves.
        step = initialize(session, model, run, replica)
        chief = stack.enter_context(Chief(run, session, model, step)) if replica.is_chief else None
        stack.enter_context(calls.prefetching(model, step))

        def draw_samples(chief: Chief) -> None:
            faces = show_generator_output(session, model, chief.sample_z, run.grid(step))
            chief.after_samples(step, faces)
            on_samples(faces)

        if chief and step == 0:
            draw_samples(chief)
        last = False
        while not last:
            # Take the next batch: real images and latents. (On a GPU, the batches of several steps.)
            feed = calls.next_feed()

            # Update the discriminator, then the generator against it: fetching the losses makes the step.
            losses, stopped = calls.run_steps(session, feed, stop)
            step += feed[model.count]
            last = stopped or step == run.last_step

            # Every 400 steps, draw a grid of samples and print the losses. Log, evaluate and save when due.
            if chief and chief.after_steps(step, losses, calls.images_per_second, last):
                draw_samples(chief)
        replica.barrier(session)
    return step


def initialize(session, model: TrainingGraph, run: Run, replica: Replica) -> int:
    """Initialise the weights, or restore the run's checkpoint. Returns the number of steps made.

    The chief's initial weights may come from another run, and are copied to all replicas.
    """
    values, init_from = {}, run.settings['init_from']
    if init_from and not run.checkpoint and replica.is_chief:
        values = initial_values(Path(init_from), model.graph, run.system, dcgan.frozen_scopes(run.system))
    model.initialize(session, run.dataset.faces, values)
    if run.checkpoint:
        checkpoints.restore(session, model.saver, run.checkpoint)
    if replica.is_chief:
        run.open_directory()
    replica.synchronize(session)
    return int(session.run(model.step))


def show_generator_output(session, model: TrainingGraph, latents: np.ndarray, path: Path) -> np.ndarray:
    """Draw faces and save them as a grid, a PNG file; returns them, uint8 (N, H, W, C)."""
    faces = to_uint8(session.run(model.samples, {model.input_z: latents}), (-1, 1))
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
        print(f'Training animation: {training_gif(args.run_dir)}')
    elif is_launcher(args.workers):
        launch(args.workers, args.worker_timeout, prepare=functools.partial(prepare_data, args))
    else:
        with from_environment(args.worker_timeout) as replica, start_run(args, replica) as run:
            run_training(run, replica)


def run_training(run: Run, replica: Replica) -> None:
    """Train, and print what was trained on and how it ended."""
    if replica.is_chief:
        print_start(run, replica)
    try:
        step = train(run, replica)
    except (OSError, tf.errors.ResourceExhaustedError) as error:  # no disk space, or no memory
        intact = f'. Checkpoints in {run.directory} are unaffected' if replica.is_chief else ''
        raise cli.UserError(f'stopped: {error}{intact}') from None
    if replica.is_chief:
        with cli.stop_on_signals():  # all is saved: ignore signals for a moment
            print_end(run, step)
    if step < run.last_step:
        raise SystemExit(cli.STOPPED)


def print_start(run: Run, replica: Replica) -> None:
    """Print the run directory, the data, the devices and the precision."""
    print(f'Run: {run.directory}\nFaces: {run.dataset}')
    if run.system.attributes:
        shares = (run.dataset.conditions[run.dataset.training] > 0).mean(axis=0)
        print('Attributes: ' + ', '.join(map('{} {:.0%}'.format, run.system.attributes, shares)))
    workers = f'Workers: {replica.count}. ' if replica.count > 1 else ''
    print(f'{workers}{devices()} Precision: {run.system.precision}.')
    if run.system.precision == 'bf16' and not has_fast_bfloat16():
        print('Warning: this machine has no bfloat16 units, so fp32 would be several times faster than bf16')


def print_end(run: Run, step: int) -> None:
    """Print how far the run has come, the next command, and the warning if the training is failing."""
    quoted = shlex.quote(str(run.directory))
    if step < run.last_step:
        print(f'Stopped and saved at step {step}. To continue: python train.py --resume --run-dir {quoted}')
    else:
        print(f'Done: {step} steps. To draw faces: python generate.py --checkpoint {quoted}')
    print(f'Samples: {run.grid(step)}\nTraining animation: {training_gif(run.directory)}')
    if run.warning:
        print(run.warning)


if __name__ == '__main__':
    cli.run(main)
