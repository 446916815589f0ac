"""Atomic file replacement, locks, and output folders that never overwrite each other."""

import contextlib
import itertools
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to an operating system error that names no file, such as "No space left on device"."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; the file written there is renamed to `path` on success."""
    # Remove the temporary files of killed processes. Running processes hold a lock on theirs.
    for stale in path.parent.glob(f'.{"[0-9a-f]" * 32}.*') if fcntl else ():
        with contextlib.suppress(OSError), open(stale, 'rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stale.unlink()

    # Write the file under a name of its own, so that `path` is always either the old or the new file.
    temporary = path.with_name(f'.{uuid.uuid4().hex}.{path.name}')
    try:
        with naming(path), contextlib.ExitStack() as stack:
            if fcntl:
                lock(stack.enter_context(open(temporary, 'wb')))
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def lock(file: IO | int, wait: bool = False) -> None:
    """Lock an open file until it is closed or its process ends.

    If another process holds the lock, raises BlockingIOError, or waits. Does nothing if the system has no locks.
    """
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            # The file system has no locks.
            pass


def lock_folder(folder: Path, stack: contextlib.ExitStack) -> None:
    """Lock a folder until `stack` is closed or the process ends. Raises BlockingIOError if another process holds it."""
    if fcntl:
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        lock(descriptor)


def check_writable(folder: Path) -> Path:
    """Raise the OSError that writing into `folder` would raise. Returns the tested path: the nearest existing one."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        error.filename = str(folder)
        raise
    return existing


def has_files(folder: Path) -> bool:
    """Whether `folder` exists and has files. Hidden files do not count: a killed process may have left them."""
    return folder.exists() and any(not path.name.startswith('.') for path in folder.iterdir())


def numbered(path: Path) -> Iterator[Path]:
    """Yield `path`, path-2, path-3, ..."""
    yield path
    yield from (path.with_name(f'{path.name}-{number}') for number in itertools.count(2))


def make_unused(path: Path) -> Path:
    """Create and return the first of the `numbered` folders that does not exist; two processes get different ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folders = numbered(path)
    while True:
        with contextlib.suppress(FileExistsError):
            folder = next(folders)
            folder.mkdir()
            return folder
