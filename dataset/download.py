"""Downloads with resume, retries and integrity checks."""

import contextlib
import hashlib
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from common.cli import progress
from common.files import fcntl, lock, naming
from common.lazy import LazyModule
from dataset import DataError

requests = LazyModule('requests')

WAITS = (1.0, 2.0, 4.0)  # seconds before the second, third and fourth attempt
TIMEOUT = (10, 60)  # seconds to connect, and to wait for more data
RETRIED_STATUSES = {408, 416, 429}  # client errors that are retried, in addition to all server errors


def download(path: Path, urls, size: int, md5: str) -> Path:
    """Download the file `path` from the first of `urls` that serves it, unless it exists. Returns `path`.

    An interrupted download leaves a `.part` file, which the next one resumes. It is renamed once its size in bytes and
    its MD5 are right. If several processes need the file, one downloads it and the others wait. Raises DataError if no
    URL serves it, or if `path` has another size.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f'{path.name}.part')
        with locked(part):
            # Another process may have downloaded it while this one waited.
            if not path.exists():
                download_now(path, part, urls, size, md5)
    if (found := path.stat().st_size) != size:
        raise DataError(
            f'{path} has {found} bytes, but the official archive has {size}: '
            f'remove it to download it again, or use it as it is with --data {shlex.quote(str(path))}'
        )
    return path


@contextlib.contextmanager
def locked(part: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `part`, after waiting for other processes; delete it afterwards if empty."""
    with contextlib.ExitStack() as stack:
        # Windows has no such locks, and an open file cannot be renamed there.
        while fcntl:
            file = stack.enter_context(open(part, 'ab'))
            try:
                lock(file)
            except BlockingIOError:
                print(f'Waiting for another process that is downloading {part}', file=sys.stderr)
                lock(file, wait=True)
            # The other process may have renamed or removed the file while this one waited: if so, open it again.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                    break
            file.close()
        try:
            yield
        finally:
            if not size_of(part):
                part.unlink(missing_ok=True)


def download_now(path: Path, part: Path, urls, size: int, md5: str) -> None:
    """Complete `part` from the first of `urls` that serves it, and rename it to `path`. Raises DataError."""
    failures = []
    for url in urls:
        try:
            fetch(url, part, size, md5)
            part.replace(path)
            return
        # ValueError: a malformed URL or header. FileNotFoundError: another process has renamed the file, which can
        # happen on file systems without locks.
        except (DataError, FileNotFoundError, requests.RequestException, ValueError) as error:
            if size_of(path) == size:
                return
            failures.append(f'{url} ({reason(error)})')
    raise DataError(
        f'cannot download {path.name} from {", ".join(failures)}. '
        f'Download it manually ({size} bytes, MD5 {md5}) to {path}'
    )


def fetch(url: str, part: Path, size: int, md5: str) -> None:
    """Complete and verify the file `part`. If it was resumed and is wrong, download it once more from the start."""
    while True:
        resumed = size_of(part) > 0
        complete(url, part, size)
        digest = hashlib.md5()
        with open(part, 'rb') as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() == md5:
            return
        part.write_bytes(b'')  # not deleted: this process holds its lock
        if not resumed:
            raise DataError(f'MD5 {digest.hexdigest()} instead of {md5}')


def complete(url: str, part: Path, size: int) -> None:
    """Download the rest of the file `part`. Gives up after four attempts in a row that get no further than before."""
    furthest = size_of(part)
    waits = iter(WAITS)
    while size_of(part) < size:
        try:
            receive(url, part, size)
        except requests.RequestException as error:
            # Progress starts a new row of attempts.
            if size_of(part) > furthest:
                furthest, waits = size_of(part), iter(WAITS)

            # Wait and try again, unless the error is permanent or this was the last attempt.
            status = getattr(error.response, 'status_code', 0)
            permanent = isinstance(error, ValueError) or (300 <= status < 500 and status not in RETRIED_STATUSES)
            wait = None if permanent else next(waits, None)
            if wait is None:
                raise
            print(f'{reason(error)}; retrying in {wait:g} s', file=sys.stderr)
            time.sleep(wait)


def receive(url: str, part: Path, size: int) -> None:
    """Make one request for the missing bytes of `part`, and append them.

    Raises DataError if the response is not the file, and requests.RequestException if another attempt may help.
    """
    start = size_of(part)
    headers = {'Accept-Encoding': 'identity'} | ({'Range': f'bytes={start}-'} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        # Find out where the response starts.
        if response.status_code == 416:  # the server does not have this range: restart from zero
            part.write_bytes(b'')
        response.raise_for_status()
        if not response.headers.get('Content-Range', '').startswith(f'bytes {start}-'):
            start = 0  # the server ignores ranges and sends the whole file

        # Refuse error pages and other files before anything is written.
        chunks = response.iter_content(1 << 16)
        chunk = next(chunks, b'')
        if 'html' in response.headers.get('Content-Type', '') or (start == 0 and chunk.lstrip()[:1] == b'<'):
            raise DataError('an HTML page, which Google Drive sends when its download quota is exceeded')
        length = int(response.headers.get('Content-Length', size - start))
        if length != size - start:
            raise DataError(f'not the archive: {start + length} bytes instead of {size}')
        if part.stem.endswith('.zip') and start == 0 and not chunk.startswith(b'PK'):
            raise DataError('not a zip file')

        # Write at most `size` bytes, even if the server sends more.
        bar = progress(desc=part.stem, total=size, initial=start, unit='B', unit_scale=True)
        with bar, naming(part), open(part, 'ab' if start else 'wb') as file:
            while chunk and file.tell() < size:
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
    """The reason for a failed download, in a few words."""
    if isinstance(error, requests.HTTPError):
        return f'status {error.response.status_code}'
    if isinstance(error, requests.TooManyRedirects):
        return 'too many redirects'
    if isinstance(error, requests.RequestException):
        return f'connection failed: {type(error).__name__}'
    return str(error)
