"""`--workers N`: start N copies of the running command as workers on this machine, and watch over them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

from common import cli
from distributed.cluster import ADVICE, LAUNCHED, LOST, Worker, from_environment

GRACE_SECONDS = 2.0  # that the other workers get to end by themselves when one has failed


def is_launcher(count: int) -> bool:
    """Whether this process is to launch `count` workers. Raises UserError if TF_CONFIG is malformed or names others."""
    replica = from_environment(timeout=0)
    if count == 1 or (isinstance(replica, Worker) and replica.launched):
        return False
    if replica.count > 1:
        raise cli.UserError('--workers and TF_CONFIG: use one of them')
    return True


def launch(count: int, timeout: float, prepare) -> None:
    """Run the command of this process as `count` workers, until all have ended or one has failed.

    timeout: seconds of silence after which a worker is lost; only for the message.
    prepare: a function called first, for what needs to be done only once. It sees no GPU: those are for the workers.

    Each worker gets a GPU of its own, or an equal shard of the cores on a machine without GPUs. Only the first, the
    chief, writes to the terminal; the stderr of another is shown if it fails. Stop signals are passed on to all.
    Raises UserError if a worker is killed or hangs, and SystemExit if one has failed and said why or all have stopped.
    """
    gpus = visible_gpus()
    if gpus and len(gpus) < count:
        raise cli.UserError(f'--workers {count} needs as many GPUs, and there are {len(gpus)}')
    if gpus:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    prepare()
    addresses = free_addresses(count)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []  # only Linux has it
    with contextlib.ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        workers = []
        for index in range(count):
            if gpus:  # inherited by the worker, as are the cores; this process needs neither any more
                os.environ['CUDA_VISIBLE_DEVICES'] = gpus[index]
            elif cores:
                os.sched_setaffinity(0, cores[len(cores) * index // count : len(cores) * (index + 1) // count] or cores)
            workers.append(stack.enter_context(start_worker(index, addresses, errors[index])))
            stack.callback(workers[-1].kill)
        received = pass_on_signals(workers)
        statuses = wait_for_end(workers)
        if not any(statuses):
            return
        if set(statuses) == {cli.STOPPED}:
            sys.exit(cli.STOPPED)
        if received:
            sys.exit(128 + received[-1])
        for index, status in enumerate(statuses):
            if status is not None and status < 0:
                raise cli.UserError(f'worker {index} was killed by {signal.Signals(-status).name}{ADVICE}')
            if status not in (None, 0, LOST):
                errors[index].seek(0)
                sys.stderr.write(errors[index].read().decode(errors='replace'))
                sys.exit(status)
    hanging = ' and '.join(f'worker {index}' for index, status in enumerate(statuses) if status is None) or 'a worker'
    raise cli.UserError(f'{hanging} did not answer for {timeout:g} s{ADVICE}')


def start_worker(index: int, addresses: list[str], errors) -> subprocess.Popen:
    """Start a worker. errors: a file for the stderr of every worker but the chief."""
    config = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}, 'environment': LAUNCHED}
    return subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {'TF_CONFIG': json.dumps(config)},
        stdin=subprocess.PIPE,  # closed when this process ends, even if it is killed: see Worker._follow_launcher
        stdout=subprocess.DEVNULL if index else None,
        stderr=errors if index else None,
        start_new_session=True,  # signals of the terminal reach this process only
    )


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    if 'CUDA_VISIBLE_DEVICES' in os.environ:
        return [name for name in os.environ['CUDA_VISIBLE_DEVICES'].split(',') if name not in ('', '-1')]
    lines = subprocess.getoutput('nvidia-smi --list-gpus').splitlines()  # an error message if there is no driver
    return [str(index) for index in range(sum(line.startswith('GPU') for line in lines))]


def free_addresses(count: int) -> list[str]:
    """Addresses with a free port each, reachable only from this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(('127.0.0.1', 0))) for _ in range(count)]
        return [f'127.0.0.1:{each.getsockname()[1]}' for each in sockets]


def pass_on_signals(workers: list[subprocess.Popen]) -> list[int]:
    """Pass on stop signals to the workers. Returns a list to which each signal received is added."""
    received: list[int] = []

    def pass_on(number, _frame):
        received.append(number)
        for worker in workers:
            worker.send_signal(number)

    for number in cli.stop_signals():
        signal.signal(number, pass_on)
    return received


def wait_for_end(workers: list[subprocess.Popen]) -> list[int | None]:
    """Exit statuses of workers: waits for all, but for GRACE_SECONDS at most once one has failed (None: running)."""
    deadline = float('inf')
    while None in (statuses := [worker.poll() for worker in workers]) and time.monotonic() < deadline:
        if not {*statuses} <= {None, 0, cli.STOPPED}:
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        time.sleep(0.1)
    return statuses
