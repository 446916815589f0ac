"""Prepared data sets: all faces of a source, decoded on all cores, as one uint8 array in a .npy file."""

import collections
import contextlib
import functools
import hashlib
import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.files import replacing
from common.cli import progress
from dataset import DataError
from dataset.sources import IMAGE_SUFFIXES, files_below, image_names, open_reader

MAX_UNREADABLE = 0.01  # of all images
MAX_NAMED = 10  # unreadable images that are named one by one
CHUNK = 64  # images decoded, and then written, at a time
MIN_CHUNKS = 32  # for fewer, starting processes takes longer than decoding
MAX_PENDING = 4  # chunks per process that have been submitted and not yet written

ReadImage = Callable[[BinaryIO], np.ndarray]


def load_prepared(
    source: Path, image_size: int, cache_dir: Path, read_image: ReadImage, *made_with: object
) -> np.ndarray:
    """All images of `source` (a zip archive or a folder) as uint8 (N, image_size, image_size, 3), memory-mapped.

    The first call writes the array to a .npy file in `cache_dir`, named after the source and all that decides its
    content. Unreadable images are left out and counted on stderr, and the first MAX_NAMED of them are named there.
    read_image: turns an open image file into uint8 (image_size, image_size, 3). It is pickled for other processes.
    made_with: what `read_image` depends on besides the size.
    Raises DataError if there are no images or more than MAX_UNREADABLE are unreadable, and OSError if the source cannot
    be read or the array cannot be written.
    """
    source.stat()  # raises an error that names a missing file or a loop of links
    path = cache_dir / f'{source.stem}-{image_size}-{fingerprint(source, image_size, *made_with)}.npy'
    faces = open_prepared(path, image_size)
    if faces is None:
        names = image_names(source)
        if not names:
            raise DataError(f'{source} contains no images ({" ".join(sorted(IMAGE_SUFFIXES))})')
        with contextlib.closing(read_faces(source, names, image_size, read_image)) as blocks:
            faces = save_prepared(path, image_size, blocks)
    return faces


def fingerprint(source: Path, *made_with: object) -> str:
    """A hash that changes with the archive, or any file of the folder, and with `made_with`."""
    files = sorted(files_below(source)) if source.is_dir() else [source]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if os.path.isfile(file)]
    text = repr((str(source.resolve()), stats, *made_with))
    return hashlib.blake2s(text.encode(), digest_size=8).hexdigest()


def open_prepared(path: Path, image_size: int) -> np.ndarray | None:
    """The faces in a .npy file as uint8 (N, image_size, image_size, 3), memory-mapped.

    Returns None if there is no such file or if it is damaged, which is reported on stderr. Raises OSError if it cannot
    be read.
    """
    try:
        faces = np.load(path, mmap_mode='r', allow_pickle=False)
        if faces.dtype == np.uint8 and faces.shape[1:] == (image_size, image_size, 3):
            return faces
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception:  # a damaged header makes NumPy raise nearly anything
        pass
    print(f'{path} is damaged and will be made again', file=sys.stderr)
    return None


def save_prepared(path: Path, image_size: int, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Write blocks of faces, each uint8 (n, image_size, image_size, 3), to a .npy file that appears once complete.

    Returns all faces, memory-mapped.
    """

    def write_header(count: int) -> None:
        shape = (count, image_size, image_size, 3)
        np.lib.format.write_array_header_1_0(file, {'descr': '|u1', 'fortran_order': False, 'shape': shape})

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        write_header(0)
        count = 0
        for block in blocks:
            file.write(block.tobytes())
            count += len(block)
        file.seek(0)
        write_header(count)  # as long as the first: NumPy leaves room for an array that grows
    return np.load(path, mmap_mode='r')


def read_faces(source: Path, names: list[str], image_size: int, read_image: ReadImage) -> Iterator[np.ndarray]:
    """Yield the readable ones of the images `names` in blocks, each uint8 (n, image_size, image_size, 3)."""
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    unreadable = 0
    with (
        progress(desc='Preparing faces', total=len(names), unit=' images', unit_scale=True) as bar,
        contextlib.closing(decode_chunks(source, chunks, read_image)) as decoded,
    ):
        for chunk, results in zip(chunks, decoded, strict=True):
            faces = []
            for name, face in zip(chunk, results, strict=True):
                if not isinstance(face, str):
                    faces.append(face)
                    continue
                unreadable += 1
                if unreadable <= MAX_NAMED:  # with repr: a name may contain line breaks or control characters
                    bar.write(f'Left out {name!r}: {face}', file=sys.stderr)
            if unreadable > MAX_UNREADABLE * len(names):
                raise DataError(f'{source}: more than {MAX_UNREADABLE:.0%} of its {len(names)} images cannot be read')
            yield np.array(faces, np.uint8).reshape(-1, image_size, image_size, 3)
            bar.update(len(chunk))
    if unreadable:
        print(f'{unreadable} of {len(names)} images could not be read and were left out', file=sys.stderr)


def decode_chunks(source: Path, chunks: list[list[str]], read_image: ReadImage) -> Iterator[list[np.ndarray | str]]:
    """Yield the result of `decode` for each chunk of names, in order, with a process per core."""
    processes = available_cores()
    if len(chunks) < MIN_CHUNKS or processes == 1:
        read_file = open_reader(source)
        yield from (decode(read_file, read_image, chunk) for chunk in chunks)
        return
    # Threads would wait for the interpreter's lock. 'spawn' is safe whatever threads are running already.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context('spawn'), start_worker)
    pending: collections.deque[Future] = collections.deque()  # bounded, or a slow disk would let faces fill the memory
    try:
        for chunk in chunks:
            if len(pending) == MAX_PENDING * processes:
                yield pending.popleft().result()
            pending.append(pool.submit(decode_in_worker, source, read_image, chunk))
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise DataError(f'{source}: a decoding process was killed, perhaps for lack of memory') from None
    finally:
        pool.shutdown(cancel_futures=True)


def available_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def start_worker() -> None:
    """Leave Ctrl-C to the parent process, and end when it ends, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


cached_reader = functools.cache(open_reader)  # a worker process opens the source once


def decode_in_worker(source: Path, read_image: ReadImage, names: list[str]) -> list[np.ndarray | str]:
    """`decode` for a process of its own."""
    return decode(cached_reader(source), read_image, names)


def decode(read_file: Callable[[str], bytes], read_image: ReadImage, names: list[str]) -> list[np.ndarray | str]:
    """The face in each of the files `names`, or a string that says why it cannot be read."""
    faces: list[np.ndarray | str] = []
    for name in names:
        try:
            faces.append(read_image(io.BytesIO(read_file(name))))
        except Exception as error:  # a broken image makes Pillow and zipfile raise nearly anything
            faces.append(str(error) or type(error).__name__)
    return faces
