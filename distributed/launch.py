"""`--workers N`: start N copies of the running command as workers on this machine, and supervise them."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

from common import cli
from distributed.cluster import ADVICE, LAUNCHED, LOST, Worker, from_environment

GRACE_SECONDS = 2.0  # time for the other workers to end by themselves after one has failed


def is_launcher(count: int) -> bool:
    """Whether this process has to launch `count` workers. Raises UserError for a wrong TF_CONFIG."""
    replica = from_environment(timeout=0)
    if count == 1 or (isinstance(replica, Worker) and replica.launched):
        return False
    if replica.count > 1:
        raise cli.UserError('use either --workers or the environment variable TF_CONFIG, not both')
    return True


def launch(count: int, timeout: float, prepare) -> None:
    """Run the command of this process as `count` workers, until all have ended or one has failed.

    timeout: seconds without an answer after which a worker counts as lost; only for the message.
    prepare: a function called once before the workers start. It sees no GPU: the workers need them.
    Only the chief, worker 0, writes to the terminal. Raises UserError and SystemExit, see `outcome`.
    """
    gpus = visible_gpus()
    if gpus and len(gpus) < count:
        problem = f'--workers {count} needs {count} GPUs, but only {len(gpus)} can be used'
        raise cli.UserError(f'{problem}; to train on the CPU, set CUDA_VISIBLE_DEVICES=-1')
    if gpus:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    prepare()

    addresses = free_addresses(count)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []  # Linux only
    with contextlib.ExitStack() as stack:
        # Start the workers. They inherit their cores from this process, which does not need any itself.
        errors = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        workers = []
        for index in range(count):
            variables, share = share_of_devices(index, count, gpus, cores)
            if share:
                stack.callback(os.sched_setaffinity, 0, cores)
                os.sched_setaffinity(0, share)
            workers.append(stack.enter_context(start_worker(index, addresses, variables, errors[index])))
            stack.callback(workers[-1].kill)

        # Wait for the first failure or for the end of all, and pass on stop signals.
        received: list[int] = []

        def pass_on(number, _frame):
            received.append(number)
            for worker in workers:
                worker.send_signal(number)

        stack.enter_context(cli.handling(cli.stop_signals(), pass_on))
        outcome(wait_for_end(workers), received, errors, timeout)


def share_of_devices(index: int, count: int, gpus: list[str], cores: list[int]) -> tuple[dict[str, str], list[int]]:
    """The environment variables and the cores of a worker: its own GPU, or without GPUs an equal share of the cores."""
    if gpus:
        return {'CUDA_VISIBLE_DEVICES': gpus[index]}, cores
    share = cores[len(cores) * index // count : len(cores) * (index + 1) // count]
    return {}, share or cores  # with fewer cores than workers, some use all of them


def start_worker(index: int, addresses: list[str], variables: dict[str, str], errors) -> subprocess.Popen:
    """Start a worker with more environment variables. errors: a file for its stderr unless it is the chief."""
    config = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}, 'environment': LAUNCHED}
    # The command with Python's own options, except in a notebook, which runs it in its own process.
    flags = sys.argv[1:]
    command = sys.orig_argv[1:] if sys.orig_argv[-len(flags) :] == flags else sys.argv
    return subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | variables | {'TF_CONFIG': json.dumps(config)},
        stdin=subprocess.PIPE,  # closed when this process ends, even if it is killed: see Worker._follow_launcher
        stdout=subprocess.DEVNULL if index else None,
        stderr=errors if index else None,
        start_new_session=True,  # only this process receives the terminal's signals
    )


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES: indices or UUIDs.

    Like CUDA, ignores that variable from the first name on that fits no GPU of the machine.
    """
    # A line is "GPU 0: NVIDIA A100 (UUID: GPU-5b...)", or an error message if there is no driver.
    listed = subprocess.getoutput('nvidia-smi --list-gpus')
    indices = re.findall(r'^GPU (\d+):', listed, re.MULTILINE)
    uuids = re.findall(r'UUID: (\S+)\)', listed)  # of the GPUs and their MIG partitions

    gpus: list[str] = []
    names = os.environ.get('CUDA_VISIBLE_DEVICES', ','.join(indices)).split(',')
    for name in map(str.strip, names):
        matches = [uuid for uuid in uuids if name.startswith(('GPU-', 'MIG-')) and uuid.startswith(name)]
        if name in gpus or (name not in indices and len(matches) != 1):
            break
        gpus.append(name)
    return gpus


def free_addresses(count: int) -> list[str]:
    """Loopback addresses with different free ports."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(('127.0.0.1', 0))) for _ in range(count)]
        return [f'127.0.0.1:{server.getsockname()[1]}' for server in servers]


def wait_for_end(workers: list[subprocess.Popen]) -> list[int | None]:
    """Wait for all workers, but only GRACE_SECONDS after one has failed. Returns exit statuses (None: running)."""
    deadline = float('inf')
    while None in (statuses := [worker.poll() for worker in workers]) and time.monotonic() < deadline:
        if not {*statuses} <= {None, 0, cli.STOPPED}:
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        time.sleep(0.1)
    return statuses


def outcome(statuses: list[int | None], received: list[int], errors: list, timeout: float) -> None:
    """Return if all workers have succeeded; otherwise report the worker that failed first.

    Raises SystemExit if they were stopped or one has failed with a message, and UserError if one was killed or hangs.
    """
    if not any(statuses):
        return
    if set(statuses) == {cli.STOPPED}:
        sys.exit(cli.STOPPED)
    if received:
        sys.exit(128 + received[-1])

    # Workers with status LOST have ended because of the one that failed.
    for index, status in enumerate(statuses):
        if status is not None and status < 0:
            raise cli.UserError(f'worker {index} was killed by {signal.Signals(-status).name}{ADVICE}')
        if status not in (None, 0, LOST):
            errors[index].seek(0)
            sys.stderr.write(errors[index].read().decode(errors='replace'))
            sys.exit(status)

    # All others have lost a worker that is still running.
    hanging = ' and '.join(f'worker {index}' for index, status in enumerate(statuses) if status is None) or 'a worker'
    raise cli.UserError(f'{hanging} did not answer for {timeout:g} s{ADVICE}')
