"""Downloads that resume, retry, and never take an error page for the file."""

import contextlib
import hashlib
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from common.cli import progress
from common.files import fcntl, lock, naming
from common.lazy import LazyModule
from dataset import DataError

requests = LazyModule('requests')

WAITS = (1.0, 2.0, 4.0)  # seconds before the second, third and fourth attempt at a source
TIMEOUT = (10, 60)  # seconds to connect, and to wait for more data
RETRIED_STATUSES = {408, 416, 429}  # of the client errors; server errors are all retried


def download(path: Path, urls, size: int, md5: str) -> Path:
    """Download the file `path` from the first of `urls` that serves it, unless it exists. Returns `path`.

    An interrupted download leaves a `.part` file, which the next one completes. It gets its name once its size in
    bytes and its MD5 are right. Where several processes want it, one downloads it and the others wait.
    Raises DataError if no URL serves it, or if `path` has another size.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f'{path.name}.part')
        with locked(part):
            if not path.exists():  # another process may have downloaded it meanwhile
                download_now(path, part, urls, size, md5)
    if (found := path.stat().st_size) != size:
        raise DataError(
            f'{path} has {found} bytes, but the official archive has {size}: '
            f'remove it to download it again, or use it as it is with --data {shlex.quote(str(path))}'
        )
    return path


@contextlib.contextmanager
def locked(part: Path) -> Iterator[None]:
    """Keep other processes from the file `part` meanwhile. Leaves no empty one behind."""
    # Without locks, on Windows, a file that is open cannot be renamed either.
    with open_locked(part) if fcntl else contextlib.nullcontext():
        try:
            yield
        finally:
            if not size_of(part):
                part.unlink(missing_ok=True)


def open_locked(part: Path) -> IO:
    """Open and lock the file `part`; waits for another process that has it. Closing the file unlocks it."""
    while True:
        file = open(part, 'ab')  # noqa: SIM115
        try:
            lock(file)
        except BlockingIOError:
            print(f'Waiting: another process downloads {part}', file=sys.stderr)
            lock(file, wait=True)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                return file
        file.close()  # the other process has renamed or removed it: what has the name now is another file, or nothing


def download_now(path: Path, part: Path, urls, size: int, md5: str) -> None:
    """Complete `part` from the first of `urls` that serves it, and rename it to `path`. Raises DataError."""
    failures = []
    for url in urls:
        try:
            fetch(url, part, size, md5)
            part.replace(path)
            return
        # ValueError: a malformed URL or header. FileNotFoundError: on a file system without locks, another process has
        # renamed the file.
        except (DataError, FileNotFoundError, requests.RequestException, ValueError) as error:
            if size_of(path) == size:
                return
            failures.append(f'{url} ({reason(error)})')
    raise DataError(
        f'{path.name} could not be downloaded from {", ".join(failures)}. '
        f'Get it by hand ({size} bytes, MD5 {md5}) and put it at {path}'
    )


def fetch(url: str, part: Path, size: int, md5: str) -> None:
    """Complete and verify the file `part`. Gives up after four attempts in a row that get no further than before."""
    resumed = furthest = size_of(part)
    waits = iter(WAITS)
    while size_of(part) < size:
        try:
            receive(url, part, size)
        except requests.RequestException as error:
            if size_of(part) > furthest:
                furthest, waits = size_of(part), iter(WAITS)
            status = getattr(error.response, 'status_code', 0)
            permanent = isinstance(error, ValueError) or (300 <= status < 500 and status not in RETRIED_STATUSES)
            wait = None if permanent else next(waits, None)
            if wait is None:
                raise
            print(f'{reason(error)}; trying again in {wait:g} s', file=sys.stderr)
            time.sleep(wait)
    digest = hashlib.md5()
    with open(part, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != md5:
        part.write_bytes(b'')  # not removed: it is locked
        if not resumed:
            raise DataError(f'its MD5 is {digest.hexdigest()}, not {md5}')
        fetch(url, part, size, md5)  # the fault may lie in what was there before: start over


def receive(url: str, part: Path, size: int) -> None:
    """Make one request for the bytes that `part` still lacks, and append them.

    Raises DataError if the answer is not the archive, and requests.RequestException if another attempt may help.
    """
    start = size_of(part)
    headers = {'Accept-Encoding': 'identity'} | ({'Range': f'bytes={start}-'} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # the server has no such range: start over
            part.write_bytes(b'')
        response.raise_for_status()
        if not response.headers.get('Content-Range', '').startswith(f'bytes {start}-'):
            start = 0  # the server ignores ranges and sends the whole file
        chunks = response.iter_content(1 << 16)
        chunk = next(chunks, b'')
        if 'html' in response.headers.get('Content-Type', '') or (start == 0 and chunk.lstrip()[:1] == b'<'):
            raise DataError('it sent an HTML page, as Google Drive does when its download quota is used up')
        length = int(response.headers.get('Content-Length', size - start))
        is_zip = start > 0 or chunk.startswith(b'PK')
        if length != size - start or (part.stem.endswith('.zip') and not is_zip):
            raise DataError(f'it is not the archive: {start + length} bytes instead of {size}, or not a zip file')
        bar = progress(desc=part.stem, total=size, initial=start, unit='B', unit_scale=True)
        with bar, naming(part), open(part, 'ab' if start else 'wb') as file:
            while chunk and file.tell() < size:  # whatever comes after `size` bytes is ignored
                file.write(chunk)
                bar.update(len(chunk))
                chunk = next(chunks, b'')
    if size_of(part) < size:
        raise requests.ConnectionError


def size_of(path: Path) -> int:
    """The size of a file in bytes, 0 if it does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def reason(error: Exception) -> str:
    """Why a download failed, in a few words."""
    if isinstance(error, requests.HTTPError):
        return f'status {error.response.status_code}'
    if isinstance(error, requests.TooManyRedirects):
        return 'too many redirects'
    if isinstance(error, requests.RequestException):
        return f'connection failed: {type(error).__name__}'
    return str(error)
