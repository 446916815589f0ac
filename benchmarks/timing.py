"""What the benchmarks share: timed training, a process for each measurement, the machine and figures as text."""

import contextlib
import datetime
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np

import helper
import train
from config.settings import choose_settings, parse_arguments, system_of
from graph.replica import Replica
from training.log import Log
from training.run import Run

IMAGES = 4096  # random images in the data set


def in_own_process(function, *args, **options):
    """Call a function of a benchmark in a new process, which no earlier measurement has influenced."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *args, **options).result()


def milliseconds_per_step(flags: str, steps: int, warm_up: int) -> float:
    """Milliseconds per step of `train.train` with these flags, including its log, over `steps` steps after `warm_up`.

    The last call is not counted: it also draws a grid and saves a checkpoint. Raises ValueError if no call is left.
    """
    ends = []
    add_steps = Log.add_steps

    def add_steps_and_look(log, step, *args):
        add_steps(log, step, *args)
        ends.append((step, time.perf_counter()))

    # The run: random images, and nothing due before its end.
    flags += f' --steps {warm_up + steps + 1} --sample-every 1000000 --checkpoint-every 1000000 --keep-every 1000000'
    settings = choose_settings(parse_arguments(flags.split()))
    shape = IMAGES, *system_of(settings).image_shape
    dataset = helper.Dataset(np.random.default_rng(0).integers(0, 256, shape, np.uint8), 'none')

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, 'w'))))
        stack.enter_context(mock.patch.object(Log, 'add_steps', add_steps_and_look))
        train.train(Run(settings, dataset, Path(folder)), Replica())

    # From the first call that ends after the warm-up to the last but one.
    (first, began), (last, ended) = next(end for end in ends if end[0] >= warm_up), ends[-2]
    if last <= first:
        raise ValueError(f'{steps} steps are too few for a measurement')
    return 1000 * (ended - began) / (last - first)


def spread(values, form: str = '{:.0f}') -> str:
    """The median of some values (minimum to maximum)."""
    return f'{form.format(statistics.median(values))} ({form.format(min(values))} to {form.format(max(values))})'


def machine() -> str:
    """The processor, its cores, the version of TensorFlow, and the date."""
    model = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').exists():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        model = next((line.split(': ')[1] for line in lines if line.startswith('model name')), model)
    return f'{model}, {os.cpu_count()} cores, TensorFlow {version("tensorflow")}, {datetime.date.today()}'
