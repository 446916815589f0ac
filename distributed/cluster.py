"""The workers of TF_CONFIG: processes that train together, each with a `tf.distribute.Server`."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

from common import cli
from distributed.collectives import CollectiveReplica
from distributed.socket_filter import listen_only_on
from graph.replica import Replica
from graph.session import session_config, tf

JOBS = ('chief', 'worker')  # jobs of TF_CONFIG, in the order in which their tasks are numbered
LAUNCHED = 'launch.py'  # "environment" in the TF_CONFIG of a worker started by `launch`
LOST = 3  # exit status of such a worker when it has lost another
ADVICE = '; all workers have stopped. Resume with --resume --run-dir RUN'
LOST_ERRORS = ('UnavailableError', 'DeadlineExceededError', 'AbortedError', 'CancelledError', 'FailedPreconditionError')
MAX_JSON_BYTES = 1 << 16  # size of a value that is broadcast
START_FACTOR = 10  # timeouts that a worker may take to start, since its machine may have to start first
PROBES = 10  # probes of each other worker per timeout
# Preface of HTTP/2 with empty settings. gRPC of TensorFlow 2.16 keeps a connection without it open for two minutes.
GREETING = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def from_environment(timeout: float):
    """The `Worker` that TF_CONFIG describes, or a single-process `Replica`. Raises UserError if it is malformed."""
    # Number the tasks of all jobs: the index of this one is its number.
    try:
        config = json.loads(os.environ.get('TF_CONFIG') or '{}')
        if not config.get('cluster'):
            return Replica()
        jobs, task = config['cluster'], config['task']
        tasks = {(job, index): address for job in JOBS for index, address in enumerate(jobs.get(job, []))}
        index = list(tasks).index((task['type'], int(task['index'])))
    except (ValueError, KeyError, TypeError, AttributeError):
        example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
        raise wrong_config(f'is malformed, expected {example}, with a task of the cluster') from None

    # Refuse clusters in which these workers could not train together.
    if ('chief', 1) in tasks or not set(jobs) <= set(JOBS):
        raise wrong_config('may have only the jobs "worker" and "chief", with one chief')
    addresses = list(tasks.values())
    if len({split_address(address) for address in addresses}) < len(addresses):
        raise wrong_config('has the same address for two workers')
    launched = config.get('environment') == LAUNCHED
    return Worker(index, addresses, timeout, launched) if len(addresses) > 1 else Replica()


def wrong_config(problem: str) -> cli.UserError:
    """The error that TF_CONFIG has a problem."""
    return cli.UserError(f'the environment variable TF_CONFIG {problem}; to train in one process: unset TF_CONFIG')


def split_address(address) -> tuple[str, int]:
    """The host and the port of an address. Raises UserError."""
    host, _, port = address.rpartition(':') if isinstance(address, str) else ('', '', '')
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise wrong_config(f'has {address!r} instead of an address of the form host:port')
    return host.strip('[]'), int(port)


def answers(address: str, timeout: float) -> bool:
    """Whether the worker at an address is alive: its TensorFlow server returns a greeting."""
    # gRPC answers from its own threads, even while Python is busy. If the process is stopped, the kernel still accepts
    # connections for it, but sends nothing.
    with contextlib.suppress(OSError), socket.create_connection(split_address(address), timeout) as connection:
        connection.sendall(GREETING)
        return bool(connection.recv(1))
    return False


def shard_size(batch_size: int, count: int) -> int:
    """The size of each worker's shard of a batch. Raises UserError if `count` workers cannot have equal shards."""
    size, rest = divmod(batch_size, count)
    if rest:
        choices = ' or '.join(str(number * count) for number in (size, size + 1) if number)
        problem = f'a batch of {batch_size} cannot be divided equally among {count} workers'
        raise cli.UserError(f'{problem}: use --batch-size {choices}')
    return size


class Worker(CollectiveReplica):
    """One of several processes that train together.

    When another worker ends, is stopped or becomes unreachable, this process ends too, at once and from any thread,
    because TensorFlow's sessions and servers might wait for the other worker indefinitely. Slow workers are fine; only
    unresponsive ones count as lost.
    """

    def __init__(self, index: int, addresses: list[str], timeout: float, launched: bool = False):
        """addresses: host:port of each worker. timeout: seconds without an answer after which one counts as lost."""
        super().__init__(index, len(addresses))
        self.addresses, self.timeout, self.launched = addresses, timeout, launched
        self._finished = threading.Event()
        self._ending = threading.Lock()  # held by the thread that ends the process, so that there is one report

    def __enter__(self):
        """Start the server, wait for all workers, at most START_FACTOR times the timeout, and start watching them."""
        if self.launched:
            threading.Thread(target=self._follow_launcher, daemon=True).start()
        try:
            self._start_server()
            # Wait for one worker after the other, and watch each from then on.
            deadline = time.monotonic() + START_FACTOR * self.timeout
            for index, address in enumerate(self.addresses):
                while not answers(address, timeout=1):
                    if time.monotonic() > deadline:
                        self._end(f'cannot reach worker {index} ({address})')
                    time.sleep(0.2)
                if index != self.index:
                    threading.Thread(target=self._watch, args=[address], daemon=True).start()
        except BaseException as error:
            self.__exit__(type(error), error, None)
        return self

    def _follow_launcher(self):
        """Send this process SIGTERM, so that it saves and ends, when the launcher has ended, which closes stdin."""
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    def _watch(self, address: str):
        """End this process when a worker has been silent for the timeout, unless training has finished."""
        heard = time.monotonic()
        while not self._finished.wait(self.timeout / PROBES):
            if answers(address, self.timeout):
                heard = time.monotonic()
            elif time.monotonic() > heard + self.timeout:
                self._end()

    def _start_server(self):
        """Start TensorFlow's server and configure its sessions."""
        # Each session uses only the devices of its own worker; collectives meet at worker 0, and use NCCL between GPUs.
        self._config = session_config()
        self._config.experimental.collective_group_leader = '/job:worker/replica:0/task:0'
        self._config.experimental.collective_nccl = True
        self._config.device_filters.append(f'/job:worker/task:{self.index}')

        own, cluster = self.addresses[self.index], tf.train.ClusterSpec({'worker': self.addresses})
        try:
            # The server opens its port when it is created: filter the port before anything is served.
            self._server = tf.distribute.Server(cluster, 'worker', self.index, config=self._config, start=False)
            listen_only_on(*split_address(own))
            self._server.start()
        except tf.errors.OpError:
            raise cli.UserError(f'cannot listen on {own}: another program may be using the port') from None

    def __exit__(self, kind, error: BaseException | None, traceback) -> NoReturn:
        """Report an error, if any, and end the process with its status."""
        status = 1
        with self._ending:
            try:
                status = cli.exit_status(error)
                sys.stdout.flush()
            finally:
                os._exit(status)  # a regular exit destroys the server, which may wait indefinitely for lost workers

    def shard(self, batch_size: int) -> slice:
        size = shard_size(batch_size, self.count)
        return slice(self.index * size, (self.index + 1) * size)

    def broadcast(self, value):
        # Send the JSON text as floats, padded to a fixed size that all workers know in advance.
        text = json.dumps(value).encode().ljust(MAX_JSON_BYTES)
        with tf.Graph().as_default() as graph:
            own = tf.placeholder(tf.float32, [MAX_JSON_BYTES])
            chiefs = self.broadcast_tensor(own)
        with self.open_session(graph) as session, self._end_if_others_are_lost():
            codes = session.run(chiefs, {own: list(text)})
        return json.loads(codes.astype('uint8').tobytes())

    def open_session(self, graph):
        return tf.Session(self._server.target, graph, self._config)

    def synchronize(self, session) -> None:
        with self._end_if_others_are_lost():
            session.run(self._broadcast_variables)

    def run(self, session, fetches, feed: dict, stop: threading.Event):
        with self._end_if_others_are_lost():
            fetched, stopped = session.run([fetches, self._stopped], {**feed, self._stop: stop.is_set()})
        return fetched, bool(stopped)

    def barrier(self, session) -> None:
        # All steps are done, so another worker may already have ended.
        with self._end_if_others_are_lost(), contextlib.suppress(tf.errors.OpError):
            session.run(self._barrier)
        self._finished.set()

    @contextlib.contextmanager
    def _end_if_others_are_lost(self):
        """End the process if the code inside fails because of another worker, for example a broken connection."""
        try:
            yield
        except tf.errors.OpError as error:
            if type(error).__name__ not in LOST_ERRORS:
                raise
            self._end()

    def _end(self, reason: str = 'another worker has ended, hangs or cannot be reached') -> NoReturn:
        """End this process at once with one line on stderr, or silently if there is a launcher to report it."""
        with self._ending:
            if self.launched:
                os._exit(LOST)
            os._exit(cli.exit_status(cli.UserError(f'worker {self.index}: {reason}{ADVICE}')))
