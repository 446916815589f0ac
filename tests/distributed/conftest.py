"""Processes that are started for a test and killed after it."""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import forkserver
import pytest

SMALL_TRAINING = Path(__file__).parent / 'small_training.py'


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """A function that starts a Python script with `flags`, for `worker` (index, addresses) as one of TF_CONFIG."""
    with contextlib.ExitStack() as stack:

        def start(script, *flags, cwd=tmp_path, worker=None, **variables):
            if worker:
                index, addresses = worker
                task = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}}
                variables['TF_CONFIG'] = json.dumps(task)
            cwd.mkdir(exist_ok=True)
            options = {'cwd': cwd, 'env': os.environ | variables, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
            process = forkserver.start([script, *flags], **options)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def start_small_training(start) -> Callable[..., subprocess.Popen]:
    """`start` for `small_training.py`."""
    return lambda *flags, **options: start(SMALL_TRAINING, *flags, **options)


@pytest.fixture
def finish() -> Callable[[subprocess.Popen], dict]:
    """A function that waits for a successful small training and returns its result."""

    def finish(process):
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0 and errors == '', errors
        return json.loads(output.splitlines()[-1])

    return finish
