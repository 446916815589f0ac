"""Who trains together?

One process, or several, the workers: each builds the same graph, trains on its part of every batch and averages
the gradients with the others, on TensorFlow's own runtime, `tf.distribute.Server` (gRPC) and collective ops. The
workers are those that TF_CONFIG names, or N on this machine that `launch` starts. The first is the chief.
"""

import contextlib
import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import cli

TASKS = ('chief', 'worker')  # of TF_CONFIG, in the order of ranks
START = 10  # times as long as in training do workers wait for one another at the start
RETRY = 0.2  # seconds between attempts to reach a worker
GRACE = 2.0  # seconds in which others can notice that a worker is gone
LOST = 3  # exit status of a worker that `launch` started and that lost another
BROKEN = 'Unavailable', 'DeadlineExceeded', 'Aborted', 'Cancelled', 'FailedPrecondition'  # errors of a lost worker
SHARED_BYTES = 1 << 16  # the most that `share` passes on


class Cluster(NamedTuple):
    """The workers, by their addresses, host:port, and which of them this process is."""

    rank: int = 0
    addresses: tuple[str, ...] = ('',)
    timeout: float = 60.0  # seconds that a worker waits for the others
    local: bool = False  # started by `launch`, which says what went wrong
    server: Any = None  # of TensorFlow, once it is started
    config: Any = None  # of sessions on it

    @property
    def size(self) -> int:
        return len(self.addresses)

    @property
    def several(self) -> bool:
        return self.size > 1

    def part(self, batch_size) -> slice:
        """This worker's part of every batch. Raises UserError where parts would not be equal."""
        share, rest = divmod(batch_size, self.size)
        if rest:
            near = [f'{size}' for size in (batch_size - rest, batch_size - rest + self.size) if size]
            raise cli.UserError(
                f'a batch of {batch_size} cannot be shared out to {self.size} workers: --batch-size {" or ".join(near)}'
            )
        return slice(self.rank * share, (self.rank + 1) * share)

    @property
    def chief(self) -> bool:
        """Whether this is the worker that writes logs, samples and checkpoints."""
        return self.rank == 0


ALONE = Cluster()


def from_environment(timeout) -> Cluster:
    """The cluster that TF_CONFIG describes; without it, of this process alone. Raises UserError."""
    text = os.environ.get('TF_CONFIG')
    if not text:
        return Cluster(timeout=timeout)
    try:
        config = json.loads(text)
        jobs, task = config['cluster'], config['task']
        addresses = [(name, number, address) for name in TASKS for number, address in enumerate(jobs.get(name, []))]
        names = [(name, number) for name, number, _ in addresses]
        rank = names.index((task['type'], int(task['index'])))
        others = set(jobs) - set(TASKS)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise cli.UserError(
            'TF_CONFIG is malformed: it should be like {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}, with a task that is in the cluster'
        ) from None
    if others:
        raise cli.UserError(f'TF_CONFIG: no {", ".join(sorted(others))} is used here, only {" and ".join(TASKS)}')
    if len(jobs.get('chief', [])) > 1:
        raise cli.UserError('TF_CONFIG: there can be one chief only')
    addresses = tuple(address for _, _, address in addresses)
    for address in addresses:
        split(address)
    if len(set(addresses)) < len(addresses):
        raise cli.UserError('TF_CONFIG: two workers have the same address')
    return Cluster(rank, addresses, timeout)


def split(address) -> tuple[str, int]:
    """Host and port of an address. Raises UserError."""
    host, _, port = address.rpartition(':') if isinstance(address, str) else ('', '', '')
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise cli.UserError(f'TF_CONFIG: {address!r} is no address like host:2222')
    return host.strip('[]'), int(port)


# --- workers of this machine


def own_gpus() -> list[str]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if 'CUDA_VISIBLE_DEVICES' in os.environ:
        return [name for name in os.environ['CUDA_VISIBLE_DEVICES'].split(',') if name not in ('', '-1')]
    if not shutil.which('nvidia-smi'):
        return []
    names = subprocess.run(['nvidia-smi', '--list-gpus'], capture_output=True, text=True).stdout.splitlines()
    return [str(number) for number, name in enumerate(name for name in names if name.startswith('GPU'))]


def free_addresses(count) -> tuple[str, ...]:
    """So many addresses on this machine that nobody else can reach, with ports that are free."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(('127.0.0.1', 0))
        return tuple(f'127.0.0.1:{one.getsockname()[1]}' for one in sockets)


def serve(work, members: Cluster, gpus, errors):
    """What a process that `launch` started does: `work`, on its share of the machine."""
    with contextlib.suppress(AttributeError):  # Windows has no sessions
        os.setsid()  # a terminal's signals reach `launch` alone, which passes them on
    if gpus:
        os.environ['CUDA_VISIBLE_DEVICES'] = gpus[members.rank]
    elif hasattr(os, 'sched_setaffinity'):
        cores = sorted(os.sched_getaffinity(0))
        first, end = (len(cores) * number // members.size for number in (members.rank, members.rank + 1))
        os.sched_setaffinity(0, cores[first:end] or cores)
    if not members.chief:
        for stream, path in ((1, os.devnull), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)

    def follow():  # where `launch` was killed, save and end
        multiprocessing.parent_process().join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    run(lambda: work(members))


def wait_until_one_fails(workers):
    """Wait until a process of `workers` has failed, or all have ended."""
    while True:
        # Once a round: one that was asked again could have ended meanwhile, and nobody would wait for it.
        ended = [worker.exitcode for worker in workers]
        running = [worker.sentinel for worker, status in zip(workers, ended, strict=True) if status is None]
        if any(ended) or not running:
            return
        connection.wait(running)


def launch(count, timeout, prepare, work):
    """Call `prepare`, then `work` with its cluster in `count` processes of this machine; end all when one fails.

    Each has a GPU of its own, or a share of the CPU's cores. Only the chief, the first, talks to the terminal.
    Signals are passed on. Raises UserError when a worker is killed or hangs; what else goes wrong it says itself,
    and SystemExit is raised.
    """
    gpus = own_gpus()
    if gpus and len(gpus) < count:
        raise cli.UserError(f'--workers {count}, but there are {len(gpus)} GPUs: each worker needs its own')
    if gpus:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''  # this process leaves them to the workers
    prepare()
    addresses = free_addresses(count)
    context = multiprocessing.get_context('spawn')
    with tempfile.TemporaryDirectory() as folder:
        errors = [Path(folder) / str(rank) for rank in range(count)]
        workers = [
            context.Process(target=serve, args=(work, Cluster(rank, addresses, timeout, True), gpus, errors[rank]))
            for rank in range(count)
        ]
        received = []

        def forward(number, _):
            received.append(number)
            for worker in workers:
                if worker.is_alive():
                    os.kill(worker.pid, number)

        try:
            for worker in workers:
                worker.start()
            for number in cli.stop_signals():
                signal.signal(number, forward)
            wait_until_one_fails(workers)
            end = time.monotonic() + GRACE
            for worker in workers:
                worker.join(max(0, end - time.monotonic()))
            ended = [worker.exitcode for worker in workers]
        finally:
            for worker in workers:
                if worker.pid:
                    worker.kill()
                    worker.join()
        if not any(ended):
            return
        if received:
            sys.exit(128 + received[-1])
        for rank, status in enumerate(ended):
            if status is not None and status < 0:
                raise cli.UserError(f'worker {rank} was killed by {signal.Signals(-status).name}{ADVICE}')
            if status not in (None, 0, LOST):
                if rank:
                    sys.stderr.write(errors[rank].read_text(errors='replace'))
                sys.exit(status)
        hang = ' and '.join(f'worker {rank}' for rank, status in enumerate(ended) if status is None)
        raise cli.UserError(f'{hang or "a worker"} did not answer for {timeout:g} s{ADVICE}')


# --- all workers

ADVICE = '; all workers have ended. To go on from the last checkpoint: --resume with --run-dir'


def start(members: Cluster) -> Cluster:
    """The same, with a `tf.distribute.Server` of this worker, once all workers have been reached.

    When that takes longer than `START` timeouts the process ends; UserError where its address cannot be listened on.
    """
    from runtime import session_config, tf

    config = session_config()
    config.experimental.collective_group_leader = '/job:worker/replica:0/task:0'
    config.experimental.collective_nccl = True  # on GPUs
    config.device_filters.append(f'/job:worker/task:{members.rank}')  # a session needs no other worker
    spec = tf.train.ClusterSpec({'worker': members.addresses})
    own = members.addresses[members.rank]
    try:
        server = tf.distribute.Server(spec, job_name='worker', task_index=members.rank, config=config, start=False)
        listen_only_on(*split(own))
        server.start()
    except tf.errors.OpError:
        raise cli.UserError(f'{own} cannot be listened on: another program may use that port') from None
    end = time.monotonic() + START * members.timeout
    for rank, address in enumerate(members.addresses):
        while not answers(address):
            if time.monotonic() > end:
                lose(members, f'worker {rank}, {address}, cannot be reached: no answer')
            time.sleep(RETRY)
    return members._replace(server=server, config=config)


def open_session(members: Cluster, graph):
    """A session, on the worker's server if there are several workers."""
    from runtime import open_session

    return open_session(graph, members.config, members.server.target if members.several else '')


def answers(address) -> bool:
    """Whether anything listens at an address."""
    try:
        socket.create_connection(split(address), timeout=1).close()
    except OSError:
        return False
    return True


def find_gone(members: Cluster) -> list[str]:
    """The other workers that do not listen any more, none if all do for `GRACE` seconds.

    One that ends breaks its connections a little before it stops listening.
    """
    others = [item for item in enumerate(members.addresses) if item[0] != members.rank]
    end, gone = time.monotonic() + GRACE, []
    while not gone and time.monotonic() < end:
        time.sleep(RETRY)
        gone = [f'worker {rank}, {address}' for rank, address in others if not answers(address)]
    return gone


def listen_only_on(host, port):
    """Have the sockets of this process that listen on `port` ignore what is not sent to the address of `host`.

    TensorFlow's server listens on all interfaces, whatever its address, and obeys whoever connects. So where the
    address is one of this machine (of a container behind another address it is not), a socket filter (Linux;
    man 7 socket, SO_ATTACH_FILTER) drops all other packets.
    """
    if not sys.platform.startswith('linux'):
        return
    try:
        address = socket.gethostbyname(host)
        socket.create_server((address, 0)).close()
    except OSError:
        return
    # Load the IPv4 destination, compare, accept or drop.
    (wanted,) = struct.unpack('!I', socket.inet_aton(address))
    program = struct.pack('HBBI' * 4, 0x20, 0, 0, 0xFFF00010, 0x15, 0, 1, wanted, 0x06, 0, 0, 0xFFFFFFFF, 0x06, 0, 0, 0)
    program = ctypes.create_string_buffer(program)
    for name in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError), open(f'/proc/self/fdinfo/{name}'):
            descriptor = os.dup(int(name))
            try:
                one = socket.socket(fileno=descriptor)
            except OSError:
                os.close(descriptor)
                continue
            with one:
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockname()[1] == port:
                    one.setsockopt(socket.SOL_SOCKET, 26, struct.pack('HP', 4, ctypes.addressof(program)))


def lose(members: Cluster, what=None):
    """End this process because another worker does not take part any more: one line on stderr, exit status 2.

    At once: sessions and servers wait for the calls of others, for ever if those hang, and TensorFlow's threads may
    crash. `what` happened is found out where it is not known, by another program in this process. Where `launch`
    started the workers it says what happened.
    """
    if members.local:
        os._exit(LOST)
    if not what:
        os.execv(sys.executable, [sys.executable, __file__, sys.argv[0], str(members.rank), *members.addresses])
    cli.report(f'worker {members.rank}: {what}{ADVICE}')
    os._exit(2)


def run(main):
    """`cli.run` for a worker: the process ends at once when `main` has, as in `lose`."""
    try:
        cli.run(main)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)


@contextlib.contextmanager
def together(members: Cluster):
    """What all workers do together: ends the process when one of the others is lost.

    The runtime reports broken connections and reductions that take too long. What it would wait for without an
    end, such as a chief that hangs while the first step is set up, a timer ends.
    """
    if not members.several:
        yield
        return
    from runtime import tf

    timer = threading.Timer((START + 1) * members.timeout, lose, [members])
    timer.daemon = True
    timer.start()
    try:
        yield
    except tuple(getattr(tf.errors, f'{name}Error') for name in BROKEN):
        lose(members)
    finally:
        timer.cancel()


def share(members: Cluster, value):
    """The chief's `value`, anything that JSON can say, on every worker."""
    from replication import Replicas, all_reduce
    from runtime import tf

    if not members.several:
        return value
    text = json.dumps(value).encode().ljust(SHARED_BYTES) if members.chief else bytes(SHARED_BYTES)
    with tf.Graph().as_default() as graph:
        own = tf.placeholder(tf.int32, [SHARED_BYTES])
        total = all_reduce(own, Replicas(members.size, members.rank, START * members.timeout))
    with open_session(members, graph) as session, together(members):
        total = session.run(total, {own: list(text)})
    return json.loads(total.astype('uint8').tobytes())


def farewell(members: Cluster, session, last):
    """Run the operation `last`, a reduction, before the process ends: others may still fetch what it has sent."""
    from runtime import tf

    if members.several:
        with contextlib.suppress(tf.errors.OpError):  # there is nothing left to lose
            session.run(last)


if __name__ == '__main__':  # see `lose`
    command, rank, *addresses = sys.argv[1:]
    sys.argv = [command]  # whose error it is
    lost = Cluster(int(rank), tuple(addresses))
    gone = ' and '.join(find_gone(lost))
    lose(lost, f'{gone} has ended' if gone else 'another worker hangs, or cannot be reached')
