"""Command lines: arguments with ranges, one-line errors, signals, progress bars."""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from common import files

with contextlib.suppress(ImportError):  # Windows, which has no SIGXCPU either
    import resource

LINE_SECONDS = 60  # seconds between the lines of a progress bar if stderr is not a terminal
STOPPED = 75  # exit status after a stop signal and a last checkpoint: EX_TEMPFAIL of sysexits.h, "try again"
ENDS = ('SIGINT', 'SIGTERM', 'SIGHUP')  # signals that end a program: Ctrl-C, `kill`, a closed terminal
WARNINGS = ('SIGUSR1', 'SIGUSR2', 'SIGXCPU')  # signals by which schedulers warn that time runs out, maybe repeatedly


class UserError(Exception):
    """An error that the user can fix; the message is one line and says how."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError instead of printing its usage."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def number(kind, low: float, high: float, *, exclusive: bool = False):
    """An argparse type: an int or float from `low` to `high`, or above `low` if `exclusive`."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = float('nan')  # outside every range
        if not low <= value <= high or (exclusive and value == low):
            name = {int: 'a whole number', float: 'a number'}[kind]
            bound = 'above' if exclusive else 'from'
            raise argparse.ArgumentTypeError(f'{text!r} is not {name} {bound} {low} to {high}')
        return value

    return parse


def path(text: str) -> Path:
    """An argparse type: a path. Refuses the empty string, because Path('') is the working directory."""
    if not text:
        raise argparse.ArgumentTypeError('the path is empty')
    return Path(text)


@contextlib.contextmanager
def output_folder(chosen: Path | None, default: str) -> Iterator[Path]:
    """Yield the folder for results: `chosen`, or the first of DEFAULT, DEFAULT-2, ... without files.

    The folder is locked while in use, and removed again if it stays empty. Raises UserError if it has files or another
    command is using it, and OSError if it cannot be written.
    """
    for out in [chosen] if chosen else files.numbered(Path(default)):
        new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        files.check_writable(out)
        with contextlib.ExitStack() as stack, files.naming(out):
            # Take this folder, or continue with the next one.
            try:
                files.lock_folder(out, stack)
                problem = f'{out} is not empty' if files.has_files(out) else ''
            except BlockingIOError:
                problem = f'another command is writing to {out}'
            if problem:
                continue
            try:
                yield out
            finally:
                if new:
                    with contextlib.suppress(OSError):  # the folder has results
                        out.rmdir()
            return
    raise UserError(f'{problem}: choose another folder with --out')


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield the path of a folder to create, which is renamed to `out` on success; an error leaves nothing behind.

    Raises UserError if `out` exists, and OSError if it cannot be written.
    """
    if os.path.lexists(out):
        raise UserError(f'{out} already exists: choose another folder')
    parent = files.check_writable(out)
    with files.naming(out), tempfile.TemporaryDirectory(dir=parent, prefix='.') as temporary:
        yield (folder := Path(temporary, out.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(out)


class Lines:
    """A stream for a progress bar that prints each of its states as a line on stderr."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass


def progress(desc='Progress', **options) -> tqdm:
    """A tqdm progress bar; if stderr is not a terminal, a line every LINE_SECONDS. Takes tqdm's options."""
    # The default lock of tqdm includes a semaphore, which a killed process would leak.
    tqdm.set_lock(threading.RLock())
    if not (sys.stderr and sys.stderr.isatty()):
        # Nothing is printed about work that takes less than LINE_SECONDS, and nothing when a bar is closed.
        options |= {'file': Lines(), 'miniters': 1, 'mininterval': LINE_SECONDS, 'delay': LINE_SECONDS, 'leave': False}
        options['bar_format'] = '{desc}: {n_fmt} of {total_fmt}{unit}, {percentage:.0f}%, {elapsed} so far'
    return tqdm(desc=desc, **options)


def stop_signals(names: Iterable[str] = (*ENDS, *WARNINGS)) -> list[int]:
    """The numbers of those signals that this system has and that are not ignored, as SIGHUP is under nohup."""
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]


@contextlib.contextmanager
def handling(signals: list[int], handler: Callable) -> Iterator[None]:
    """Call `handler` for these signals, and restore the previous handlers. Does nothing outside the main thread."""
    is_main = threading.current_thread() is threading.main_thread()  # Python allows handlers only there
    previous = {number: signal.signal(number, handler) for number in signals if is_main}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that the `stop_signals` set. After one of ENDS, another of them ends the program at once.

    In an interactive session, such as a notebook, it does what it did before: Ctrl-C raises KeyboardInterrupt.
    """
    stop, interactive = threading.Event(), hasattr(sys, 'ps1')
    second = {number: signal.getsignal(number) if interactive else signal.SIG_DFL for number in stop_signals(ENDS)}

    def request(number, _frame):
        stop.set()
        if signal.Signals(number).name == 'SIGXCPU':  # which would come again every second
            limit = resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        for each, handler in second.items() if number in second else ():
            signal.signal(each, handler)

    with handling(stop_signals(), request):
        yield stop


class Output:
    """A standard stream that ignores a closed pipe or terminal, so that training outlives its reader."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        self._call(self._stream.write, text)

    def flush(self) -> None:
        self._call(self._stream.flush)

    def _call(self, method, *args) -> None:
        try:
            method(*args)
        except OSError as error:
            # Send the rest to /dev/null: text that is still buffered, and messages of TensorFlow's C++ code.
            with open(os.devnull, 'wb') as null:
                os.dup2(null.fileno(), self._stream.fileno())
            if error.errno not in (errno.EPIPE, errno.EIO):  # closed pipe, closed terminal
                raise


@contextlib.contextmanager
def open_streams() -> Iterator[None]:
    """Make stdin, stdout and stderr usable even if the caller has closed them or closes them later."""
    before = {name: getattr(sys, name) for name in ('stdin', 'stdout', 'stderr')}
    for name, stream in before.items():
        # Replace a closed stream: the next file opened would get its number, and a child process would write to it.
        if stream is None:
            stream = open(os.devnull, 'r' if name == 'stdin' else 'w')  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
        # Leave the streams of notebooks and tests as they are.
        if name != 'stdin' and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors='backslashreplace')  # paths may not fit the encoding
            stream = Output(stream)
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in before.items():
            with contextlib.suppress(OSError, ValueError):  # full disk, closed by the command
                getattr(sys, name).flush()
            setattr(sys, name, stream)


def exit_status(error: BaseException | None) -> int:
    """Report an error and return the exit status. For an error that the user can fix: one line, and 2."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return int(error.code or 0)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, (UserError, OSError)):
        line = ' '.join(str(error).splitlines())
        print(f'{Path(sys.argv[0]).name}: error: {line}', file=sys.stderr, flush=True)
        return 2
    traceback.print_exception(error)
    return 1


def run(main) -> NoReturn:
    """Run a command and exit with its status. Signals raise an exception, so that temporary files are removed."""
    signals = [number for number in stop_signals() if number != signal.SIGINT]  # Python raises KeyboardInterrupt
    status = 0
    with open_streams(), handling(signals, lambda number, _: sys.exit(128 + number)):
        try:
            main()
            sys.stdout.flush()
        except BaseException as error:
            status = exit_status(error)
    sys.exit(status)
