"""Start Python commands quickly: a server that has imported the slow libraries forks a process for each of them.

Importing TensorFlow takes 3 to 5 seconds, a fork some milliseconds. The commands are real processes with their own
id, exit status and standard streams, and import the project's modules afresh. Tests call `run` and `start`; the server
is this file run as a script.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings
from pathlib import Path

MAX_MESSAGE = 1 << 18  # bytes of a request
# Variables that graph/session.py sets before it imports TensorFlow.
TENSORFLOW = {'TF_CPP_MIN_LOG_LEVEL': '3', 'TF_ENABLE_ONEDNN_OPTS': '1'}
# Variables, by the beginnings of their names, that Python or a library reads only when it starts.
READ_AT_START = ('TF_CPP', 'TF_ENABLE', 'XLA_', 'OMP_', 'PYTHON', 'LC_', 'LANG')
LIBRARIES = (
    'numpy', 'tensorflow.compat.v1', 'matplotlib.figure', 'matplotlib.backends.backend_agg', 'PIL.JpegImagePlugin',
    'PIL.PngImagePlugin', 'requests', 'tqdm',
)  # fmt: skip


# --- in the tests


def run(arguments, *, timeout=240, **options) -> subprocess.CompletedProcess:
    """`start` a command, wait for its end and return its exit status and what it has written."""
    with start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            output, errors = process.communicate(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


def start(arguments, *, cwd, env=None, stdout=None, stderr=None, text=True, fresh=False):
    """Start `python *arguments`, as subprocess.Popen does with these options. Its stdin is empty.

    arguments: a script or `-c` and code, then the arguments of the command.
    fresh: start a new interpreter, slowly. So is a command with other variables of READ_AT_START than the tests have.
    """
    arguments = [os.fspath(each) if isinstance(each, os.PathLike) else str(each) for each in arguments]
    env = dict(os.environ if env is None else env)
    options = {'cwd': cwd, 'env': env, 'stdout': stdout, 'stderr': stderr, 'text': text}
    if fresh or sys.platform != 'linux' or read_at_start(env) != read_at_start(os.environ):
        return subprocess.Popen([sys.executable, *arguments], stdin=subprocess.DEVNULL, **options)
    return ForkedProcess(arguments, **options)


def read_at_start(env) -> dict[str, str]:
    """The variables of READ_AT_START. PYTHONPATH is none of them: `become` extends the path of modules."""
    found = {name: value for name, value in env.items() if name.startswith(READ_AT_START) and name != 'PYTHONPATH'}
    return TENSORFLOW | found


@functools.cache
def server() -> tuple[socket.socket, subprocess.Popen]:
    """Start the server of this process, and return the socket that takes requests. It ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = TENSORFLOW | {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        # TensorFlow's first messages are of no interest. The forked processes have streams of their own.
        process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
    return ours, process


class ForkedProcess:
    """A process forked by the server, with the interface of subprocess.Popen as far as tests use it."""

    def __init__(self, arguments, *, cwd, env, stdout, stderr, text):
        self.args, self.returncode = arguments, None
        self.stdin = self.stdout = self.stderr = None
        self._result, status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as stack:
            descriptors = [stack.enter_context(open(os.devnull, 'rb')).fileno()]
            for number, name, target in ((1, 'stdout', stdout), (2, 'stderr', stderr)):
                if target == subprocess.PIPE:
                    reader, target = os.pipe()
                    stack.callback(os.close, target)
                    setattr(self, name, open(reader, 'r' if text else 'rb'))  # noqa: SIM115
                elif target is None:
                    target = number
                descriptors.append(target if isinstance(target, int) else target.fileno())
            request = {'arguments': arguments, 'cwd': os.fspath(cwd), 'env': env}
            with status:
                socket.send_fds(server()[0], [json.dumps(request).encode()], [*descriptors, status.fileno()])
        self.pid = int(self._result.recv(99))

    def poll(self):
        """The exit status, negative for a signal, or None while the process runs."""
        return self._receive(0)

    def wait(self, timeout=None):
        """Wait for the end; returns the exit status."""
        if self._receive(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _receive(self, timeout):
        if self.returncode is None:
            self._result.settimeout(timeout)
            with contextlib.suppress(BlockingIOError, TimeoutError):
                self.returncode = os.waitstatus_to_exitcode(int(self._result.recv(99)))
        return self.returncode

    def communicate(self, timeout=None):
        """Read the streams to their ends and wait; returns stdout and stderr, None for those that are no pipes."""
        deadline = None if timeout is None else time.monotonic() + timeout
        streams = [stream for stream in (self.stdout, self.stderr) if stream]
        read = {}
        threads = [threading.Thread(target=lambda s=s: read.update({s: s.read()}), daemon=True) for s in streams]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(None if deadline is None else max(0, deadline - time.monotonic()))
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(None if deadline is None else max(0.1, deadline - time.monotonic()))
        self._close()
        return read.get(self.stdout), read.get(self.stderr)

    def send_signal(self, number):
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def _close(self):
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close()
        self.wait()
        self._result.close()


# --- in the server


def serve(requests: socket.socket):
    """Fork a process for each request, and report how it ends, until nobody can send requests any more.

    Returns in the forked processes only: the arguments of the command.
    """
    woken, waker = socket.socketpair()
    for each in (woken, waker):
        each.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno())
    running: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        if woken in ready:
            woken.recv(1 << 12)
            while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                with running.pop(pid) as result, contextlib.suppress(BrokenPipeError):
                    result.send(str(status).encode())
        if requests in ready:
            message, descriptors, _, _ = socket.recv_fds(requests, MAX_MESSAGE, 4)
            if not message:
                sys.exit()
            *streams, status = descriptors
            pid = os.fork()
            if pid:
                for descriptor in streams:
                    os.close(descriptor)
                running[pid] = socket.socket(fileno=status)
                running[pid].send(str(pid).encode())
                continue
            # In the new process nothing of the server's stays open.
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            selector.close()
            for each in (woken, waker, requests, *running.values()):
                each.close()
            os.close(status)
            return become(json.loads(message), streams)


def become(request: dict, streams: list[int]) -> list[str]:
    """Turn this process into the one that was asked for; returns the arguments of its command."""
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        os.dup2(streams[number], number)
        os.close(streams[number])
        mode, buffering = 'w' if number else 'r', 1 if name == 'stderr' else -1
        stream = open(number, mode, buffering, errors=getattr(sys, name).errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['env'])
    arguments = request['arguments']
    sys.orig_argv = [sys.executable, *arguments]
    sys.path[0] = '' if arguments[0] == '-c' else os.path.dirname(arguments[0])
    sys.path[1:1] = filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))
    importlib.invalidate_caches()
    return arguments


def main(requests: socket.socket):
    """Import the libraries, serve, and in each forked process run its command."""
    for library in LIBRARIES:
        importlib.import_module(library)
    warnings.filterwarnings('ignore', '.*multi-threaded', DeprecationWarning)  # OpenBLAS ends its threads at a fork
    gc.freeze()
    try:
        arguments = serve(requests)
    except KeyboardInterrupt:
        sys.exit(130)
    if arguments[0] == '-c':
        sys.argv, file, source = ['-c', *arguments[2:]], '<string>', arguments[1].encode()
    else:
        sys.argv, file, source = arguments, arguments[0], Path(arguments[0]).read_bytes()
    sys.modules['__main__'] = module = types.ModuleType('__main__')
    module.__file__ = file
    exec(compile(source, file, 'exec', dont_inherit=True), vars(module))


if __name__ == '__main__':
    main(socket.socket(fileno=int(sys.argv[1])))
