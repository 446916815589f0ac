"""Command lines: arguments with ranges, one-line errors, signals, progress bars."""

import argparse
import contextlib
import errno
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from common import files

STOPPED = 75  # exit status of a training that has saved before its end: EX_TEMPFAIL of sysexits.h, "try again"


class UserError(Exception):
    """Something the user can put right. The message is one line and says how."""


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
            value = float('nan')  # in no range
        if not low <= value <= high or (exclusive and value == low):
            name, bound = {int: 'a whole number', float: 'a number'}[kind], 'above' if exclusive else 'from'
            raise argparse.ArgumentTypeError(f'{text!r} is not {name} {bound} {low} to {high}')
        return value

    return parse


def path(text: str) -> Path:
    """An argparse type: a path that is not empty. Path('') would be the working directory."""
    if not text:
        raise argparse.ArgumentTypeError('it is empty')
    return Path(text)


@contextlib.contextmanager
def output_folder(chosen: Path | None, default: str) -> Iterator[Path]:
    """Yield the folder for results: `chosen`, or the first of DEFAULT, DEFAULT-2, ... without files.

    Other commands cannot take it meanwhile, and it is gone afterwards if nothing was written to it. Raises UserError if
    it has files or another command writes to it, and OSError if it cannot be written.
    """
    for out in [chosen] if chosen else files.numbered(Path(default)):
        new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        files.check_writable(out)
        with contextlib.ExitStack() as stack:
            try:
                files.lock_folder(out, stack)
                problem = f'{out} is not empty' if files.has_files(out) else ''
            except BlockingIOError:
                problem = f'another command writes to {out}'
            if not problem:
                try:
                    with files.naming(out):
                        yield out
                finally:
                    if new:
                        with contextlib.suppress(OSError):  # it is not empty
                            out.rmdir()
                return
    raise UserError(f'{problem}: choose another folder with --out')


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield the path of a folder to be made, which becomes `out` on success; otherwise nothing is left behind.

    Raises UserError if `out` exists, and OSError if it cannot be written.
    """
    if os.path.lexists(out):
        raise UserError(f'{out} already exists: choose another folder')
    files.check_writable(out)
    existing = next(folder for folder in out.absolute().parents if folder.exists())
    with files.naming(out), tempfile.TemporaryDirectory(dir=existing, prefix='.') as temporary:
        yield (folder := Path(temporary, out.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(out)


def progress(**options) -> tqdm:
    """A progress bar with speed and time left, silent where stderr is not a terminal. Takes tqdm's options."""
    tqdm.set_lock(threading.RLock())  # tqdm's own lock includes a semaphore, which a killed process leaves behind
    return tqdm(disable=None, **options)


def stop_signals() -> list[int]:
    """Ctrl-C, SIGTERM and SIGHUP (a closed terminal), except those that are ignored, as under nohup."""
    signals = {signal.SIGINT, signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)}
    return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that the first of the `stop_signals` sets. A second one ends the program at once.

    The previous signal handlers are restored afterwards.
    """
    stop = threading.Event()

    def request(*_):
        stop.set()
        for number in previous:
            signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.getsignal(number) for number in stop_signals()}
    for number in previous:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Output:
    """A standard stream that falls silent once its reader or its terminal has gone: the work goes on."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._silent_without_reader():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._silent_without_reader():
            self._stream.flush()

    @contextlib.contextmanager
    def _silent_without_reader(self):
        try:
            yield
        except OSError as error:
            with open(os.devnull, 'wb') as nowhere:  # for what is still buffered, and for TensorFlow's own messages
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise


def open_streams() -> None:
    """Make sure that the standard streams can be used, whatever the caller did with them or does later."""
    for name, mode in ('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w'):
        if getattr(sys, name) is None:  # closed by the caller: the next file opened would get its number
            stream = open(os.devnull, mode)  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
        if mode == 'w':
            stream = getattr(sys, name)
            stream.reconfigure(line_buffering=True, errors='backslashreplace')  # odd paths
            setattr(sys, name, Output(stream))


def exit_status(error: BaseException | None) -> int:
    """Report an error and return the exit status: one line and 2 for what the user can put right."""
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
    """Run a command and exit with its status."""
    open_streams()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that temporary files are removed
    try:
        main()
        status = 0
    except BaseException as error:
        status = exit_status(error)
    sys.exit(status)
