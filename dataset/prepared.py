"""Prepared data sets: all faces of a source, decoded on all cores, as one uint8 array in a .npy file."""

import collections
import contextlib
import functools
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

import numpy as np

from common.cli import progress
from common.files import replacing
from dataset import DataError
from dataset.images import IMAGE_SUFFIXES, ImageSource, files_below

MAX_UNREADABLE = 0.01  # of all images
MAX_NAMED = 10  # unreadable images that are named one by one
CHUNK = 64  # images decoded, and then written, at a time
MIN_CHUNKS = 32  # for fewer, starting processes takes longer than decoding
MAX_PENDING = 4  # chunks per process that have been submitted and not yet written

open_once = functools.cache(ImageSource)  # for worker processes, each of which decodes many chunks


def load_prepared(source: Path, shape: tuple, cache_dir: Path, read_image, *made_with) -> np.ndarray:
    """All images of `source` (a zip archive or a folder) as uint8 (N, *shape), memory-mapped.

    The first call writes the array to a .npy file in `cache_dir`, named after the source and all that decides its
    content. Unreadable images are left out and counted on stderr, where the first MAX_NAMED of them are named.
    shape: height, width, channels. read_image: turns an open image file into uint8 of that shape. It is pickled for
    other processes. made_with: what `read_image` depends on besides the size.
    Raises DataError if there are no images or too many are unreadable, and OSError if a file cannot be read or written.
    """
    source.stat()  # raises an error that names a missing file or a loop of links
    path = prepared_path(source, shape, cache_dir, *made_with)
    if (faces := open_prepared(path, shape)) is not None:
        return faces
    images = ImageSource(source)
    if not (names := images.names()):
        raise DataError(f'{source} contains no images ({" ".join(sorted(IMAGE_SUFFIXES))})')
    left_out: list[str] = []
    with contextlib.closing(read_faces(images, names, read_image, left_out)) as blocks:
        faces = save_prepared(path, shape, blocks)
    if left_out:
        with replacing(path.with_suffix('.json')) as temporary:
            temporary.write_text(json.dumps(left_out))
    return faces


def load_names(source: Path, shape: tuple, cache_dir: Path, *made_with) -> list[str]:
    """The names of the files of the images that `load_prepared` gives, in the same order. Raises DataError, OSError."""
    path = prepared_path(source, shape, cache_dir, *made_with)
    record = path.with_suffix('.json')
    left_out = set(json.loads(record.read_text())) if record.exists() else set()
    names = [name for name in ImageSource(source).names() if name not in left_out]
    if len(names) != len(np.load(path, mmap_mode='r')):
        raise DataError(f'{path} was made by an earlier version, which kept no list of unreadable images: remove it')
    return names


def size_of(shape: tuple) -> int | str:
    """The size of images of `shape`, (height, width, ...), in names: 28, or for images that are not square 64x48."""
    height, width, *_ = shape
    return height if height == width else f'{height}x{width}'


def prepared_path(source: Path, shape: tuple, cache_dir: Path, *made_with) -> Path:
    """Where the images of `source` are kept."""
    size = size_of(shape)
    return cache_dir / f'{source.stem}-{size}-{fingerprint(source, size, *made_with)}.npy'


def fingerprint(source: Path, *made_with) -> str:
    """A hash that changes with the archive, or any file of the folder, and with `made_with`."""
    files = sorted(files_below(source)) if source.is_dir() else [source]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if os.path.isfile(file)]
    made_from = (str(source.resolve()), stats, *made_with)
    return hashlib.blake2s(repr(made_from).encode(), digest_size=8).hexdigest()


def open_prepared(path: Path, shape: tuple) -> np.ndarray | None:
    """Memory-map the faces in a .npy file, each of `shape`.

    Returns None if it is missing or, with a report, damaged. Raises OSError.
    """
    try:
        faces = np.load(path, mmap_mode='r', allow_pickle=False)
        if faces.dtype == np.uint8 and faces.shape[1:] == shape:
            return faces
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception:  # a damaged header makes NumPy raise nearly anything
        pass
    print(f'{path} is damaged and will be made again', file=sys.stderr)
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
        file.seek(0)  # to a header of the same length: NumPy leaves room for an array that grows
        np.lib.format.write_array_header_1_0(file, header | {'shape': (count, *shape)})
    return np.load(path, mmap_mode='r')


def read_faces(images: ImageSource, names: list[str], read_image, left_out: list[str]):
    """Yield the readable ones of the images `names` as lists of faces.

    The others are reported on stderr, and their names are added to `left_out`.
    """
    count = len(names)
    bar = progress(desc='Preparing faces', total=count, unit=' images', unit_scale=True)
    with bar, contextlib.closing(decode_chunks(images, names, read_image)) as decoded:
        for faces, failures in decoded:
            for name, reason in failures[: max(0, MAX_NAMED - len(left_out))]:
                bar.write(f'Left out {name!r}: {reason}', file=sys.stderr)  # repr: it may contain control characters
            left_out += [name for name, _ in failures]
            if len(left_out) > MAX_UNREADABLE * count:
                raise DataError(f'{images.path}: more than {MAX_UNREADABLE:.0%} of its {count} images cannot be read')
            yield faces
            bar.update(len(faces) + len(failures))
    if left_out:
        print(f'{len(left_out)} of {count} images could not be read and were left out', file=sys.stderr)


def decode_chunks(images: ImageSource, names: list[str], read_image):
    """Yield the results of `decode` for each CHUNK of names, in order, with a process per core."""
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    processes = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    if len(chunks) < MIN_CHUNKS or processes == 1:
        yield from (decode(images, read_image, chunk) for chunk in chunks)
        return
    # Threads would wait for the interpreter's lock. 'spawn' is safe whatever threads are running already.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context('spawn'), start_worker)
    submitted = (pool.submit(decode_in_worker, images.path, read_image, chunk) for chunk in chunks)
    try:
        # Chunks are submitted as others are written, or a slow disk would let faces fill the memory.
        pending = collections.deque(itertools.islice(submitted, MAX_PENDING * processes))
        while pending:
            yield pending.popleft().result()
            pending.extend(itertools.islice(submitted, 1))
    except BrokenExecutor:
        raise DataError(f'{images.path}: a decoding process was killed, perhaps for lack of memory') from None
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker():
    """Leave Ctrl-C to the parent process, and end when it ends, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def decode_in_worker(source: Path, read_image, names: list[str]):
    """`decode` for a process of its own."""
    return decode(open_once(source), read_image, names)


def decode(images: ImageSource, read_image, names: list[str]) -> tuple[list[np.ndarray], list[tuple[str, str]]]:
    """Read the faces in the files `names`. Returns them, and (name, reason) for each file that cannot be read."""
    faces, failures = [], []
    for name in names:
        try:
            faces.append(read_image(io.BytesIO(images.read(name))))
        except Exception as error:  # a broken image makes Pillow and zipfile raise nearly anything
            failures.append((name, str(error) or type(error).__name__))
    return faces, failures
