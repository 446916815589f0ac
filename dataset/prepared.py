"""Prepared data sets: all images of a source, decoded once on all cores, as one uint8 array in a .npy file.

    source ── 64 names at a time ──> decoding processes ──> blocks of images ──> SOURCE-28-HASH.npy, memory-mapped
                                                       └──> unreadable ones ───> SOURCE-28-HASH.json, their names

The hash covers the files, their sizes and times, the size and the crop. Files get their names once they are complete.
"""

import collections
import contextlib
import functools
import io
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.cli import progress
from common.files import replacing
from dataset import DataError
from dataset.source import IMAGE_SUFFIXES, Source

MAX_UNREADABLE = 0.01  # limit, as a fraction of all images
MAX_NAMED = 10  # unreadable images that are named one by one
CHUNK = 64  # images decoded, and then written, at a time
MIN_CHUNKS = 32  # for fewer, starting processes takes longer than decoding
MAX_PENDING = 4  # chunks per process that have been submitted and not yet written

open_once = functools.cache(Source)  # for worker processes, each of which decodes many chunks


@dataclass
class Prepared:
    """The images of a source. faces: uint8 (N, height, width, channels), memory-mapped from the .npy file `path`."""

    source: Source
    path: Path
    faces: np.ndarray

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of the image files, in the order of the array. Raises DataError, OSError."""
        # Only when they are needed: listing the archive of CelebA takes more than a second.
        record = self.path.with_suffix('.json')
        left_out = set(json.loads(record.read_text())) if record.exists() else set()
        names = [name for name in self.source.names if name not in left_out]
        if len(names) != len(self.faces):
            raise DataError(f'{self.path}, made by an earlier version, has no list of unreadable images: delete it')
        return names


def load_prepared(source: Source, shape: tuple, cache_dir: Path, read_image, *made_with) -> Prepared:
    """Map the prepared images of `source`, uint8 (N, *shape); the first call writes them to `cache_dir`.

    shape: height, width, channels. read_image: turns an open image file into uint8 of that shape. It is pickled for
    other processes. made_with: what `read_image` depends on in addition to the size.
    Raises DataError if there are no images or too many are unreadable, and OSError if a file cannot be read or written.
    """
    size = size_of(shape)
    path = cache_dir / f'{source.path.stem}-{size}-{source.fingerprint(size, *made_with)}.npy'
    faces = open_prepared(path, shape)
    if faces is None:
        if not source.names:
            raise DataError(f'{source.path} contains no images ({" ".join(sorted(IMAGE_SUFFIXES))})')
        left_out: list[str] = []
        with contextlib.closing(read_faces(source, read_image, left_out)) as blocks:
            faces = save_prepared(path, shape, blocks)
        # Keep the names of the unreadable images: the array does not tell which ones are missing.
        if left_out:
            with replacing(path.with_suffix('.json')) as temporary:
                temporary.write_text(json.dumps(left_out))
    return Prepared(source, path, faces)


def size_of(shape: tuple) -> int | str:
    """The size of images of `shape`, (height, width, ...), in file names: 28, or 64x48 if they are not square."""
    height, width, *_ = shape
    return height if height == width else f'{height}x{width}'


def open_prepared(path: Path, shape: tuple) -> np.ndarray | None:
    """Memory-map images of `shape`; None if the .npy file is missing or, with a message, damaged. Raises OSError."""
    try:
        faces = np.load(path, mmap_mode='r', allow_pickle=False)
        if faces.dtype == np.uint8 and faces.shape[1:] == shape:
            return faces
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception:  # a damaged header can raise any exception
        pass
    print(f'{path} is damaged; rebuilding it', file=sys.stderr)
    return None


def save_prepared(path: Path, shape: tuple, blocks) -> np.ndarray:
    """Write blocks of uint8 (n, *shape) to a .npy file that appears once complete, and map it."""
    count, header = 0, {'descr': '|u1', 'fortran_order': False, 'shape': (0, *shape)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.asarray(block, np.uint8).tobytes())
            count += len(block)
        # The count is known only now. The new header has the same length: NumPy leaves room for an array that grows.
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {'shape': (count, *shape)})
    return np.load(path, mmap_mode='r')


def read_faces(source: Source, read_image, left_out: list[str]):
    """Yield lists of faces. Unreadable images are reported on stderr, and their names added to `left_out`."""
    count = len(source.names)
    bar = progress(desc='Preparing faces', total=count, unit=' images', unit_scale=True)
    with bar, contextlib.closing(decode_chunks(source, read_image)) as decoded:
        for faces, failures in decoded:
            # Name the first unreadable images; give up if there are too many.
            for name, reason in failures[: max(0, MAX_NAMED - len(left_out))]:
                bar.write(f'Left out {name!r}: {reason}', file=sys.stderr)  # repr: it may contain control characters
            left_out += [name for name, _ in failures]
            if len(left_out) > MAX_UNREADABLE * count:
                raise DataError(f'{source.path}: more than {MAX_UNREADABLE:.0%} of its {count} images cannot be read')
            yield faces
            bar.update(len(faces) + len(failures))
    if left_out:
        print(f'{len(left_out)} of {count} images could not be read and were left out', file=sys.stderr)


def decode_chunks(source: Source, read_image):
    """Yield the results of `decode` for each CHUNK of names, in order, with a process per core."""
    # Decode a few images, or with one core, in this process.
    names = source.names
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    processes = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    if len(chunks) < MIN_CHUNKS or processes == 1:
        yield from (decode(source, read_image, chunk) for chunk in chunks)
        return
    # Processes, since threads would wait for the interpreter's lock. 'spawn' is safe if threads are already running.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context('spawn'), start_worker)
    submitted = (pool.submit(decode_in_worker, source.path, read_image, chunk) for chunk in chunks)
    try:
        # Submit a chunk for each one that is written. Otherwise a slow disk would let faces fill the memory.
        pending = collections.deque(itertools.islice(submitted, MAX_PENDING * processes))
        while pending:
            yield pending.popleft().result()
            pending.extend(itertools.islice(submitted, 1))
    except BrokenExecutor:
        raise DataError(f'{source.path}: a decoding process was killed (out of memory?)') from None
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker():
    """Ignore SIGINT, and exit when the parent process dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A killed parent cannot end its workers, so a thread of each worker waits for its end.
    threading.Thread(target=exit_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def exit_after(process) -> None:
    process.join()
    os._exit(1)


def decode_in_worker(path: Path, read_image, names: list[str]):
    """Worker-process entry point for `decode`."""
    return decode(open_once(path), read_image, names)


def decode(source: Source, read_image, names: list[str]) -> tuple[list[np.ndarray], list[tuple[str, str]]]:
    """Read the faces in the files `names`. Returns them, and (name, reason) for each file that cannot be read."""
    faces, failures = [], []
    for name in names:
        try:
            faces.append(read_image(io.BytesIO(source.read(name))))
        except Exception as error:  # a broken image can raise any exception
            failures.append((name, str(error) or type(error).__name__))
    return faces, failures
