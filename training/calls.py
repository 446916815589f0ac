"""The session calls of a run: how many steps each makes, and what it is fed.

On a GPU a step takes less than a millisecond, and the host takes longer to feed the next one. So a call makes up to
MAX_STEPS steps there, as a loop inside the graph, on data that lie on the device:

    fed       count, the batches of `count` steps end to end (indices, if the faces are on the device), their latents
    loop      step 1, step 2, ... step `count`
    fetched   the losses of each step

A program that XLA compiled takes inputs of one size. They are padded with zeros, and the loop ends after `count` steps.
On a CPU, and with several workers, a call makes one step.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from graph.replica import Replica
from graph.session import gpu_memory, open_session, tf
from graph.steps import MIN_COMPILED
from helper import get_batch
from training.run import Run

MAX_STEPS = 100  # steps per call on a GPU
MAX_SECONDS = 1.0  # length of a call, so that Ctrl-C is answered
MAX_FED = 1 << 28  # bytes of images fed to a call
MAX_STORED = 0.25  # share of the GPU's memory for the faces
TIMED_CALLS = 5  # calls timed with and without XLA


class Calls:
    """The session calls of a run.

    max_steps: the most steps in a call. stored_shape: the shape of the faces if they lie on the device, else ().
    images_per_second: the speed of the last call.
    """

    def __init__(self, run: Run, replica: Replica):
        self.run, self.replica = run, replica
        faces, memory = run.dataset.faces, gpu_memory()
        self.on_one_gpu = bool(memory) and replica.count == 1
        self.max_steps = run.settings['steps_per_call'] or (MAX_STEPS if self.on_one_gpu else 1)
        self.stored_shape = faces.shape if faces.nbytes < MAX_STORED * memory else ()
        if not self.stored_shape:
            batch_bytes = 4 * run.system.batch_size * math.prod(faces.shape[1:])
            self.max_steps = max(1, min(self.max_steps, MAX_FED // batch_bytes))
        self.steps = 1  # steps in the next call, see `run_steps`

    @contextlib.contextmanager
    def prefetching(self, model, step: int) -> Iterator[None]:
        """Prepare the feed of the next call after `step` in a thread, while the session runs."""
        self.model = model
        with contextlib.closing(prefetch(self.feeds(model, step))) as self.ready:
            yield

    def next_feed(self) -> dict:
        """The feed of the next call."""
        self.began = time.perf_counter()
        return next(self.ready)

    def run_steps(self, session, feed: dict, stop) -> tuple:
        """Make the steps of a call. Returns their `dcgan.Losses`, and whether a replica was asked to stop."""
        losses, stopped = self.replica.run(session, self.model.losses, feed, stop)
        count = feed[self.model.count]
        seconds = (time.perf_counter() - self.began) / count
        self.images_per_second = self.run.system.batch_size / seconds
        self.steps = min(max(1, int(MAX_SECONDS / seconds)), self.max_steps)
        return type(losses)(*(values[:count] for values in losses)), stopped

    def feeds(self, model, step: int) -> Iterator[dict]:
        """Yield the feeds of the calls after `step`, forever. A call ends where something is due."""
        run = self.run
        batches = run.batches(step, self.replica.shard(run.system.batch_size))
        while True:
            # The batches of the steps, end to end.
            count = min(self.steps, run.next_due(step) - step)
            indices, latents = map(np.concatenate, zip(*itertools.islice(batches, count), strict=True))
            batch = indices if self.stored_shape else get_batch(run.dataset.faces, indices)

            # A compiled program always takes as many batches.
            if run.settings['xla']:
                rows = max(self.max_steps, MIN_COMPILED) * (len(indices) // count)
                batch, latents = pad_to(rows, batch), pad_to(rows, latents)

            feed = {model.count: count, model.batch: batch, model.input_z: latents}
            yield feed | {model.learning_rate: run.system.learning_rate}
            step += count

    def choose_xla(self, build_graph: Callable) -> None:
        """Settle whether XLA compiles the training, unless a flag did: on one GPU, if that is faster."""
        if self.run.settings['xla'] is None:
            self.run.settings['xla'] = self.on_one_gpu and self.is_faster_with_xla(build_graph)

    def is_faster_with_xla(self, build_graph: Callable) -> bool:
        """Time the first steps of the run with and without XLA, at a learning rate of 0, and print both times.

        XLA counts as slower if it fails, for example because libdevice is missing.
        """
        milliseconds = {}
        count = min(self.max_steps, self.run.next_due(0))
        for xla in (False, True):
            # The graph, and the feed of one call.
            settings = self.run.settings | {'xla': xla, 'steps_per_call': count}
            trial = Calls(replace(self.run, settings=settings), Replica())
            trial.steps = count
            model = build_graph(settings, Replica(), count, trial.stored_shape)
            feed = next(trial.feeds(model, 0)) | {model.learning_rate: 0}

            # The fastest of some calls. The first one compiles.
            times = []
            with open_session(model.graph) as session:
                model.initialize(session, self.run.dataset.faces)
                with contextlib.suppress(tf.errors.OpError):
                    for _ in range(TIMED_CALLS + 1):
                        began = time.perf_counter()
                        session.run(model.losses, feed)
                        times.append(time.perf_counter() - began)
            milliseconds[xla] = min(times[1:], default=math.inf) / count * 1000

        faster = milliseconds[True] < milliseconds[False]
        print(
            f'XLA: {milliseconds[False]:.2f} ms/step off, {milliseconds[True]:.2f} ms/step on; '
            f'{"using" if faster else "not using"} XLA. Pass --xla or --no-xla to skip this measurement.'
        )
        return faster


def pad_to(rows: int, array: np.ndarray) -> np.ndarray:
    """`array` followed by zeros, (rows, ...)."""
    return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))


def prefetch(iterator: Iterator) -> Generator:
    """Yield from `iterator`, and get the next item in a thread while the last one is in use."""
    with ThreadPoolExecutor(1) as thread:
        item = thread.submit(next, iterator)
        while True:
            ready = item.result()
            item = thread.submit(next, iterator)
            yield ready
