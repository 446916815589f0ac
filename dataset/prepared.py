"""Prepared data sets: all images of a source, decoded once on all cores, as one uint8 array in a .npy file.

    source ── 64 images at a time ──> decoding processes ──> blocks of faces ──> SOURCE-28-HASH.npy, memory-mapped
                                                        └──> unreadable ones ──> SOURCE-28-HASH.json, all left out

The hash covers the images, their sizes and times, the size and the crop. Files get their names once they are complete.
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
from dataset.source import ChangedError, File, Source, advice, counted

MAX_UNREADABLE, MAX_FEW = 0.01, 10  # limit of unreadable images: a fraction of all images, or a number if that is more
MAX_STEM = 100  # bytes of the source's name in a file name, which can have 255 bytes
MAX_NAMED = 10  # unreadable images that are named one by one
CHUNK = 64  # images decoded, and then written, at a time
MIN_CHUNKS = 32  # for fewer, starting processes takes longer than decoding
MAX_PENDING = 4  # chunks per process that have been submitted and not yet written

open_once = functools.cache(Source)  # for worker processes, each of which decodes many chunks


@dataclass
class Prepared:
    """The images of a source. faces: uint8 (N, height, width, channels), memory-mapped.

    unreadable: (index in `source.images`, name, reason) of each image that could not be read. Listing an archive takes
    time, so what depends on it is computed when it is needed.
    """

    source: Source
    faces: np.ndarray
    unreadable: list[tuple[int, str, str]]

    @functools.cached_property
    def indices(self) -> list[int]:
        """The indices of the faces in `source.images`. Raises DataError, OSError."""
        left_out = {index for index, *_ in self.unreadable}
        return [index for index in range(len(self.source.images)) if index not in left_out]

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of the faces. Raises DataError, OSError."""
        return [self.source.names[index] for index in self.indices]


def load_prepared(source: Source, shape: tuple, cache_dir: Path, read_image, *made_with) -> Prepared:
    """Map the prepared images of `source`, uint8 (N, *shape); the first call writes them to `cache_dir`.

    shape: height, width, channels. read_image: turns an open image file into uint8 of that shape. It is pickled for
    other processes. made_with: what `read_image` depends on in addition to the size. Prints what is left out.
    Raises DataError if there are no images or too many are unreadable, and OSError if a file cannot be read or written.
    """
    # Find the array, and the list of what it leaves out.
    size = size_of(shape)
    stem = source.real_path.stem.encode(errors='replace')[:MAX_STEM].decode(errors='ignore')
    path = cache_dir / f'{stem}-{size}-{source.fingerprint(size, *made_with)}.npy'
    record, faces = path.with_suffix('.json'), open_prepared(path, shape)
    left_out = read_record(record, path, len(faces)) if faces is not None else None

    # Or make them. The list is complete before the array gets its name: the array does not tell what is missing.
    if faces is None or left_out is None:
        source.check_images()
        left_out = {'images': len(source.images), 'unreadable': [], 'others': source.others}

        def blocks():
            yield from read_faces(source, read_image, left_out['unreadable'])
            write_record(record, left_out)

        with contextlib.closing(blocks()) as made:
            faces = save_prepared(path, shape, made)

    # Files that are no images do not change the array.
    elif source.is_folder and left_out['others'] != source.others:
        left_out['others'] = source.others
        write_record(record, left_out)

    # Say what is left out.
    unreadable, others = left_out['unreadable'], left_out['others'].values()
    parts = [f'{len(unreadable)} of {left_out["images"]} images, which cannot be read'] if unreadable else []
    parts += [f'other files: {counted(others)}'] if others else []
    if parts:
        print(f'Left out: {"; ".join(parts)} (listed in {record}){advice(others)}')
    return Prepared(source, faces, unreadable)


def read_record(record: Path, path: Path, count: int) -> dict | None:
    """What the array `path` of `count` faces leaves out; None, with a message, if the list is missing or damaged."""
    try:
        left_out = json.loads(record.read_text())
        if left_out['images'] - len(left_out['unreadable']) == count and left_out['others'].values() is not None:
            return left_out
    except Exception:  # a damaged file can raise any exception
        pass
    print(f'{record} is missing or damaged; rebuilding {path}', file=sys.stderr)
    return None


def write_record(record: Path, left_out: dict) -> None:
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(left_out, indent=1) + '\n')


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


def read_faces(source: Source, read_image, unreadable: list):
    """Yield lists of faces. Adds (index, name, reason) of each unreadable image to `unreadable`."""
    count = len(source.images)
    limit = max(MAX_FEW, MAX_UNREADABLE * count)
    bar = progress(desc='Preparing faces', total=count, unit=' images', unit_scale=True)
    with bar, contextlib.closing(decode_chunks(source, read_image)) as decoded:
        for start, (faces, failures) in zip(range(0, count, CHUNK), decoded, strict=True):
            # Name the first unreadable images; give up if there are too many.
            for offset, reason in failures:
                name = source.names[start + offset]
                if len(unreadable) < MAX_NAMED:
                    bar.write(f'Left out {name!r}: {reason}', file=sys.stderr)  # repr: it may have control characters
                unreadable.append((start + offset, name, reason))
            if len(unreadable) > limit or len(unreadable) == count:
                some = f'more than {limit:.0f}' if len(unreadable) > limit else 'all'
                _, name, reason = unreadable[0]
                raise DataError(f'{source.path}: {some} of its {count} images cannot be read, first {name!r}: {reason}')
            yield faces
            bar.update(len(faces) + len(failures))


def decode_chunks(source: Source, read_image):
    """Yield the results of `decode` for each CHUNK of images, in order, with a process per core."""
    # Decode a few images, or with one core, in this process.
    images = source.images
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
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


def decode_in_worker(path: Path, read_image, images: list[File]):
    """Worker-process entry point for `decode`."""
    return decode(open_once(path), read_image, images)


def decode(source: Source, read_image, images: list[File]) -> tuple[list[np.ndarray], list[tuple[int, str]]]:
    """Read the faces in `images`. Returns them, and (index in `images`, reason) for each that cannot be read."""
    faces, failures = [], []
    for index, image in enumerate(images):
        try:
            faces.append(read_image(io.BytesIO(source.read(image))))
        except ChangedError:
            raise
        except Exception as error:  # a broken image can raise any exception
            failures.append((index, str(error) or type(error).__name__))
    return faces, failures
