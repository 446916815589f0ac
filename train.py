"""How is it learned? Trains a DCGAN and keeps everything of the run in one directory.

python train.py                              CelebA, downloaded on demand into data/
python train.py --data PATH                  a zip or a folder of your own pictures
python train.py --data demo                  faces drawn by the pretrained generator: nothing to download
python train.py --resume --run-dir runs/NAME  go on where a run stopped
"""

import contextlib
import csv
import datetime
import functools
import itertools
import math
import statistics
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
import metrics
import rundir
import show
from cluster import Cluster
from rundir import LOG_COLUMNS
from settings import choose_settings, chosen_system, list_systems, parse_arguments
from systems import System

STATISTICS_BATCH = 512  # faces that the batch norm statistics of the samples are taken from
MOST_EVALUATED = 1024  # faces that --evaluate-every draws, and compares with as many
LONG_TERM_CHECKPOINTS = 10  # --keep-every is chosen so that a run keeps no more
# A training that fails: the discriminator's loss so close to the least possible, or so little of the diversity
# of real faces, in as many samples and steps one after another.
LOSS_MARGIN = 0.01
LEAST_DIVERSITY = 0.1
FAILING_SAMPLES, FAILING_STEPS = 3, 1000


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


def save_checkpoint(session, built: Graph, run_dir: Path, kind, step):
    """Save all variables as checkpoints/KIND-STEP. Raises UserError where it cannot be written."""
    from runtime import tf

    path = run_dir / 'checkpoints' / kind
    try:
        built.saver.save(session, str(path), step, write_meta_graph=False, write_state=False)
    except tf.errors.OpError:  # its first line says nothing
        rundir.remove_leftovers(run_dir)
        raise cli.UserError(
            f'no checkpoint of step {step}: {path.parent} cannot be written, a full disk perhaps; '
            'those from before are whole'
        ) from None


def show_generator_output(session, built: Graph, latents, path: Path):
    """Draw faces into a grid, a PNG file. Returns them, uint8 (N, H, W, 3), and the grid."""
    faces = helper.to_uint8(session.run(built.samples, {built.input_z: latents}), (-1, 1))
    grid = helper.images_square_grid(faces)
    with helper.replacing(path) as temporary:
        grid.save(temporary)
    return faces, grid


def evaluate(session, built: Graph, latents, real) -> dict[int, float]:
    """The distances of faces drawn from `latents` (N, latent_size) to `real` ones: see `metrics.swd`."""
    chunks = np.array_split(latents, math.ceil(len(latents) / STATISTICS_BATCH))
    drawn = np.concatenate([session.run(built.samples, {built.input_z: chunk}) for chunk in chunks])
    return metrics.swd(helper.to_uint8(drawn, (-1, 1)), real)


def diversity(faces) -> float:
    """How much faces, uint8 (N, H, W, 3), differ from one another: the mean of each value's standard deviation."""
    return float(np.std(faces, axis=0).mean())


def sign_of_failure(system: System, d_loss, drawn, real) -> str | None:
    """What shows that the training fails, None if nothing does.

    d_loss: the discriminator's mean loss; drawn, real: the diversity of faces.
    """
    labels = [label + (1 - 2 * label) * system.label_noise / 2 for label in (system.real_label, system.fake_label)]
    floor = sum(p * math.log(1 / p) for label in labels for p in (label, 1 - label) if p)  # of the loss: their entropy
    if d_loss < floor + LOSS_MARGIN:
        return f'the discriminator tells all faces apart (its loss is {d_loss:.4f}, at least {floor:.4f} in any case)'
    if drawn < real * LEAST_DIVERSITY:
        return f'the faces are nearly all the same (diversity {drawn:.2f}, of real ones {real:.2f})'
    return None


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


def assist(settings, faces, members: Cluster, replicas):
    """What a worker does that is not the chief: take part in every step of `train`, and write nothing."""
    system = chosen_system(settings)
    _, last_step = length(settings, faces)
    stop = cli.stop_on_signals()
    built = build_graph(system, settings['seed'], settings['xla'], replicas)
    with cluster.open_session(members, built.graph) as session:
        start_session(session, built, None)
        step = meet(session, built, members)
        ready = batches(system, faces, settings['seed'], step, members.part(system.batch_size))
        with contextlib.closing(prefetch(ready)) as ready:
            for batch in itertools.islice(ready, last_step - step):
                if make_step(session, built, system, batch, stop, members)[-1]:
                    break
        cluster.farewell(members, session, built.farewell)


def train(
    settings, faces, run_dir: Path, checkpoint: Path | None = None, preview=False, members=cluster.ALONE, replicas=None
):
    """Train until the epochs or steps of `settings` are over, or a signal asks to stop.

    settings: see `choose_settings`. faces: uint8 (N, H, W, 3). checkpoint: go on from there. preview: show the
    faces on the terminal, too. members, replicas: the workers that train together, of which this one is the chief.
    Raises UserError when a loss or a weight is not finite; such weights are never saved.
    """
    from runtime import tf

    system = chosen_system(settings)
    batch_size, seed = system.batch_size, settings['seed']
    epoch_steps, last_step = length(settings, faces)
    last_epoch = math.ceil(last_step / epoch_steps)
    sample_every = settings['sample_every'] or settings['sample_epochs'] * epoch_steps
    keep_every = settings['keep_every'] or math.ceil(last_epoch / LONG_TERM_CHECKPOINTS)
    # The grids show the first faces that `generate.py --seed SEED` draws.
    sample_z = generate.draw_latents(system, np.random.default_rng(seed), system.samples)
    statistics_z = generate.draw_latents(system, np.random.default_rng((2, seed)), STATISTICS_BATCH)
    training, held_out = helper.split(len(faces))
    real = next(helper.get_batches(faces, min(system.samples, len(training)), seed, 0))
    evaluate_every, unseen = settings['evaluate_every'], faces[held_out[:MOST_EVALUATED]]
    unseen_z = generate.draw_latents(system, np.random.default_rng((3, seed)), len(unseen))
    log = run_dir / 'log.csv'
    stop = cli.stop_on_signals()
    built = build_graph(system, seed, settings['xla'], replicas)
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(cluster.open_session(members, built.graph))
        step = start_session(session, built, checkpoint)
        rundir.open_run(run_dir, settings, faces)
        rundir.go_back(run_dir, step)
        least = rundir.least_distance(run_dir)
        file = stack.enter_context(open(log, 'a', newline=''))
        rows = csv.writer(file, lineterminator='\n')
        events = run_dir / f'events.out.tfevents.{time.time():.0f}.from-step-{step}'
        events = stack.enter_context(tf.io.TFRecordWriter(str(events)))
        show.add_event(events, file_version='brain.Event:2')
        # Hides what came after `step` in the files of earlier processes.
        show.add_event(events, step=step + 1, session_log=tf.SessionLog(status=tf.SessionLog.START))
        bar = stack.enter_context(helper.progress(total=last_step, initial=step, unit=' steps'))
        if step == 0:
            show.add_event(events, graph_def=built.graph.as_graph_def().SerializeToString())
            session.run(built.refresh_statistics, {built.input_z: statistics_z})
            _, grid = show_generator_output(session, built, sample_z, run_dir / 'samples' / 'step-00000000.png')
            real_grid = helper.images_square_grid(real)
            with helper.replacing(run_dir / 'samples' / 'start.png') as temporary:
                show.side_by_side(grid, real_grid).save(temporary)
            show.add_event(events, step=0, summary=show.summary(images={'faces': grid, 'real faces': real_grid}))
            if preview:
                bar.write(f'Real faces:\n{show.preview(real)}')
        recent, scores = [], []
        healthy, failing, warned = step, 0, False
        step = meet(session, built, members)
        began = time.perf_counter()
        ready = prefetch(batches(system, faces, seed, step, members.part(batch_size)))
        ready = stack.enter_context(contextlib.closing(ready))
        for batch in itertools.islice(ready, last_step - step):
            *scalars, d_real, d_fake, stopped = make_step(session, built, system, batch, stop, members)
            scalars += [d_real.mean(), d_fake.mean()]
            scores.append((d_real, d_fake))
            step += 1
            epoch = math.ceil(step / epoch_steps)
            recent.append((*scalars, batch_size / (time.perf_counter() - began)))
            last = step == last_step or stopped
            sample = last or step % sample_every == 0
            save = last or step % settings['checkpoint_every'] == 0
            keep = step % (keep_every * epoch_steps) == 0
            compare = evaluate_every and (last or step % evaluate_every == 0)
            pause = sample or save or keep or compare
            if not np.isfinite(scalars).all() or (pause and not session.run(built.weights_finite)):
                raise cli.UserError(
                    f'the training diverged: not finite at step {step}. The checkpoints in {run_dir} are '
                    'from before: go on from one with --resume, or start again with a lower --learning-rate'
                )
            if pause:
                session.run(built.refresh_statistics, {built.input_z: statistics_z})
            row = [step, epoch, *(f'{value:.6g}' for value in recent[-1]), '']
            if compare:
                distances = evaluate(session, built, unseen_z, unseen)
                distance = np.mean(list(distances.values()))
                row[-1] = f'{distance:.6g}'
                levels = {f'SWD x1000, {side}x{side}': value for side, value in distances.items()}
                show.add_event(events, step=step, summary=show.summary(levels))
                bar.write(f'Step {step}: distance to held-out faces {distance:.2f}, the least before {least:.2f}')
            rows.writerow(row)
            if pause:
                file.flush()
            if compare and distance < least:
                least = distance
                save_checkpoint(session, built, run_dir, 'best', step)
                rundir.delete_old(run_dir, healthy)
            if save:
                save_checkpoint(session, built, run_dir, 'step', step)
                rundir.delete_old(run_dir, healthy)
            if keep:
                save_checkpoint(session, built, run_dir, 'keep', step)
            if sample:
                path = run_dir / 'samples' / f'step-{step:08}.png'
                drawn, grid = show_generator_output(session, built, sample_z, path)
                show.plot_losses(log, run_dir / 'losses.png')
                means = dict(zip(LOG_COLUMNS[2:-1], np.mean(recent, axis=0), strict=True))
                means['images_per_second'] = statistics.harmonic_mean(row[-1] for row in recent)
                histograms = dict(zip(('D(x)', 'D(G(z))'), np.swapaxes(scores, 0, 1), strict=True))
                show.add_event(events, step=step, summary=show.summary(means, {'faces': grid}, histograms))
                recent.clear()
                scores.clear()
                bar.write(
                    f'Epoch {epoch}/{last_epoch}, step {step}: '
                    'discriminator loss {d_loss:.4f}, generator loss {g_loss:.4f}, D(x) {d_real:.3f}, '
                    'D(G(z)) {d_fake:.3f}, {images_per_second:.1f} images/s, '.format(**means)
                    + f'samples {path}'
                )
                if preview:
                    bar.write(show.preview(drawn))
                sign = sign_of_failure(system, means['d_loss'], diversity(drawn), diversity(real))
                healthy, failing = (healthy, failing + 1) if sign else (step, 0)
                if failing >= FAILING_SAMPLES and step - healthy >= FAILING_STEPS and not warned:
                    warned = f'Warning: since step {healthy} {sign}; {rundir.way_back(run_dir, healthy)}'
                    bar.write(warned)
                    with open(run_dir / 'warnings.log', 'a') as warnings:
                        warnings.write(f'Step {step}. {warned}\n')
            bar.update()
            if last:
                break
            began = time.perf_counter()
        cluster.farewell(members, session, built.farewell)
    if step < last_step:
        print(f'Stopped and saved at step {step}. To go on: python train.py --resume --run-dir {run_dir}')
    else:
        print(f'Done: {step} steps. To draw faces: python generate.py --checkpoint {run_dir}')
    print(f'Faces: {path}\nHow they came to be: {show.training_gif(run_dir)}')


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
        assist(settings, faces, members, replicas)
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
