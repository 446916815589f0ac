"""The workers that TF_CONFIG names: processes that train together, on `tf.distribute.Server` and collectives."""

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

JOBS = ('chief', 'worker')  # the jobs of TF_CONFIG, in the order in which their tasks are counted
LAUNCHED = 'launch.py'  # TF_CONFIG's "environment" in a worker that `launch` has started
LOST = 3  # exit status of such a worker when it has lost another
ADVICE = '; all workers have ended. To go on from the last checkpoint: --resume with --run-dir'
LOST_ERRORS = ('UnavailableError', 'DeadlineExceededError', 'AbortedError', 'CancelledError', 'FailedPreconditionError')
MAX_JSON_BYTES = 1 << 16  # of a value that is broadcast
START_FACTOR = 10  # a worker may take this many times the timeout to start: its machine may have to start first
PROBES = 10  # of every other worker in each timeout
# How HTTP/2 begins, with empty settings. gRPC of TensorFlow 2.16 keeps a connection without it open for two minutes.
GREETING = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def from_environment(timeout: float):
    """The `Worker` that TF_CONFIG says this process is, or a `Replica` alone. Raises UserError if it is malformed."""
    text = os.environ.get('TF_CONFIG')
    if not text:
        return Replica()
    try:
        config = json.loads(text)
        jobs, task = config['cluster'], config['task']
        tasks = {(job, index): address for job in JOBS for index, address in enumerate(jobs.get(job, []))}
        index = list(tasks).index((task['type'], int(task['index'])))
    except (ValueError, KeyError, TypeError, AttributeError):
        example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
        problem = f'TF_CONFIG is malformed: it should be like {example}, with a task that is in the cluster'
        raise cli.UserError(problem) from None
    if unknown := sorted(set(jobs) - set(JOBS)):
        raise cli.UserError(f'TF_CONFIG: the jobs can be {" and ".join(JOBS)}, not {", ".join(unknown)}')
    if ('chief', 1) in tasks:
        raise cli.UserError('TF_CONFIG: there can be only one chief')
    addresses = list(tasks.values())
    if len({split_address(address) for address in addresses}) < len(addresses):
        raise cli.UserError('TF_CONFIG: two workers have the same address')
    launched = config.get('environment') == LAUNCHED
    return Worker(index, addresses, timeout, launched) if len(addresses) > 1 else Replica()


def split_address(address) -> tuple[str, int]:
    """The host and the port of an address. Raises UserError."""
    host, _, port = address.rpartition(':') if isinstance(address, str) else ('', '', '')
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise cli.UserError(f'TF_CONFIG: {address!r} is not an address like host:2222')
    return host.strip('[]'), int(port)


def answers(address: str, timeout: float) -> bool:
    """Whether the worker at an address is alive: TensorFlow's server returns a greeting.

    Its threads do so whatever Python is busy with. A process that is stopped does not, though its kernel still accepts
    connections for it.
    """
    with contextlib.suppress(OSError), socket.create_connection(split_address(address), timeout) as connection:
        connection.sendall(GREETING)
        return bool(connection.recv(1))
    return False


def shard_size(batch_size: int, count: int) -> int:
    """The size of each worker's shard of a batch. Raises UserError if the shards of `count` workers are not equal."""
    size, rest = divmod(batch_size, count)
    if rest:
        choices = ' or '.join(str(number * count) for number in (size, size + 1) if number)
        problem = f'a batch of {batch_size} cannot be divided equally among {count} workers'
        raise cli.UserError(f'{problem}: --batch-size {choices}')
    return size


class Worker(CollectiveReplica):
    """One of several processes that train together.

    When another worker ends, is stopped or becomes unreachable, this process ends too, at once and from wherever it is:
    TensorFlow's sessions and servers might wait for the other worker indefinitely. A worker that is at work may let
    the others wait for as long as it likes.
    """

    def __init__(self, index: int, addresses: list[str], timeout: float, launched: bool = False):
        """addresses: host:port of each worker. timeout: seconds of silence after which one is lost.

        launched: started by `launch`.
        """
        super().__init__(index, len(addresses))
        self.addresses, self.timeout, self.launched = addresses, timeout, launched
        self._finished = threading.Event()
        self._ending = threading.Lock()  # held by the thread that ends the process, so that only one reports

    def __enter__(self):
        """Start the server, wait until all workers answer, for START_FACTOR times the timeout, and watch over them."""
        if self.launched:
            threading.Thread(target=self._follow_launcher, daemon=True).start()
        try:
            self._start_server()
            deadline = time.monotonic() + START_FACTOR * self.timeout
            for index, address in enumerate(self.addresses):
                while not answers(address, timeout=1):
                    if time.monotonic() > deadline:
                        self._end(f'worker {index}, {address}, cannot be reached: no answer')
                    time.sleep(0.2)
                if index != self.index:
                    threading.Thread(target=self._watch, args=[address], daemon=True).start()
        except BaseException as error:
            self.__exit__(type(error), error, None)
        return self

    def _follow_launcher(self):
        """Send this process SIGTERM, so that it saves and ends, when the launcher is gone and with it stdin."""
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    def _watch(self, address: str):
        """End this process when a worker has been silent for the timeout, unless the work is done."""
        heard = time.monotonic()
        while not self._finished.wait(self.timeout / PROBES):
            if answers(address, self.timeout):
                heard = time.monotonic()
            elif time.monotonic() > heard + self.timeout:
                self._end()

    def _start_server(self):
        """Start TensorFlow's server, and configure the sessions on it."""
        self._config = session_config()
        self._config.experimental.collective_group_leader = '/job:worker/replica:0/task:0'
        self._config.experimental.collective_nccl = True  # between GPUs
        self._config.device_filters.append(f'/job:worker/task:{self.index}')  # sessions use no other worker's devices
        own, cluster = self.addresses[self.index], tf.train.ClusterSpec({'worker': self.addresses})
        try:
            self._server = tf.distribute.Server(cluster, 'worker', self.index, config=self._config, start=False)
            listen_only_on(*split_address(own))
            self._server.start()
        except tf.errors.OpError:
            raise cli.UserError(f'cannot listen on {own}: another program may be using that port') from None

    def __exit__(self, kind, error: BaseException | None, traceback) -> NoReturn:
        """Report an error, if any, and end the process with its status."""
        status = 1
        with self._ending:
            try:
                status = cli.exit_status(error)
                sys.stdout.flush()
            finally:
                os._exit(status)  # a regular exit destroys the server, which can wait indefinitely for lost workers

    def shard(self, batch_size: int) -> slice:
        size = shard_size(batch_size, self.count)
        return slice(self.index * size, (self.index + 1) * size)

    def broadcast(self, value):
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
        # The work is done: it does not matter if another worker has already ended.
        with self._end_if_others_are_lost(), contextlib.suppress(tf.errors.OpError):
            session.run(self._barrier)
        self._finished.set()

    @contextlib.contextmanager
    def _end_if_others_are_lost(self):
        """End the process if what runs inside fails because of another worker, as when a connection breaks."""
        try:
            yield
        except tf.errors.OpError as error:
            if type(error).__name__ not in LOST_ERRORS:
                raise
            self._end()

    def _end(self, reason: str = 'another worker has ended, hangs or cannot be reached') -> NoReturn:
        """End this process at once, with one line on stderr; silently if there is a launcher, which reports more."""
        with self._ending:
            if self.launched:
                os._exit(LOST)
            os._exit(cli.exit_status(cli.UserError(f'worker {self.index}: {reason}{ADVICE}')))
