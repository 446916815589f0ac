"""Where do the faces come from, and how do they look side by side?

Download and verify CelebA, read any zip or folder of images, crop them, keep the result as one uint8 array
on disk, hand out batches, and lay images out in a grid.
"""

import contextlib
import functools
import hashlib
import io
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
import warnings
import zipfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CELEB_A = 'img_align_celeba.zip'
CELEB_A_SIZE = 1_443_490_838  # bytes
CELEB_A_MD5 = '00d2c5bc6d35e252742224ab0c1e8fcb'
CELEB_A_SOURCES = (
    'https://drive.usercontent.google.com/download?id=0B7EVK8r0v71pZjFTYXZWM3FlRnM'
    '&resourcekey=0-dYn9z10tMJOBAkviAcfdyQ&export=download&confirm=t',
    'https://s3-us-west-1.amazonaws.com/udacity-dlnfd/datasets/celeba.zip',
)
ATTEMPTS = 4  # a source
BACK_OFF = 1.0  # seconds before the second attempt; doubles from one to the next
TIMEOUT = (10, 60)  # seconds to connect, and without a byte

# Of an aligned CelebA image, 178x218, the article keeps the central 108x108.
ALIGNED_WIDTH, ALIGNED_HEIGHT, FACE_SIDE = 178, 218, 108
IMAGE_SUFFIXES = {'.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}
# Pillow knows others, and some of them run programs: EPS needs Ghostscript.
IMAGE_FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
MOST_PIXELS = 1 << 26  # of an image, 8192x8192: what it takes to decode it stays below 1 GB
MOST_BYTES = 1 << 27  # of an image file
MOST_UNREADABLE = 0.01  # of all images
MOST_NAMED = 10  # of the images that cannot be read
CHUNK = 64  # images that are decoded, and then written, at a time
LEAST_CHUNKS = 32  # with fewer, starting processes takes longer than decoding
HOLD_OUT = 10  # of so many faces one is never trained on: what is drawn is compared with those
PREPARATION = 'central crop, bilinear, 3'  # changes when the pixels that `get_image` gives change


class DataError(OSError):
    """The data cannot be had or used; the message says why and what to do."""


@contextlib.contextmanager
def naming(path: Path):
    """Have an error of the operating system say that it was about `path`; that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replacing(path: Path):
    """Yield a temporary name beside `path`; what was written there becomes `path` if all goes well.

    What processes that were killed left there is removed: a living one has a lock on its own.
    """
    for left in path.parent.glob(f'.{"[0-9a-f]" * 32}.*') if fcntl else ():
        with contextlib.suppress(OSError), open(left, 'rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    temporary = path.with_name(f'.{uuid.uuid4().hex}.{path.name}')
    try:
        with naming(path), open(temporary, 'wb') if fcntl else contextlib.nullcontext() as file:
            with contextlib.suppress(OSError, AttributeError):  # not every file system, or system, can
                fcntl.flock(file, fcntl.LOCK_EX)
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def progress(**options):
    """A tqdm progress bar with speed and time left, silent where stderr is not a terminal."""
    from tqdm import tqdm  # here, as requests below: both are slow to load, and `--help` needs neither

    tqdm.set_lock(threading.RLock())  # its own, between processes, is a semaphore that one that is killed leaves behind
    return tqdm(disable=None, **options)


def download_celeb_a(data_dir, sources=CELEB_A_SOURCES, size=CELEB_A_SIZE, md5=CELEB_A_MD5) -> Path:
    """Path of the official archive in `data_dir`, fetched from the first of `sources` (URLs) that has it.

    What an interrupted download got is kept as a `.part` file and completed by the next. The archive gets
    its name once `size` (bytes) and `md5` are right; one that is there already is not fetched again.
    Raises DataError when no source gives it, or a file of that name is not the archive.
    """
    import requests

    archive = Path(data_dir) / CELEB_A
    if archive.exists():
        if archive.stat().st_size == size:
            return archive
        raise DataError(
            f'{archive} has {archive.stat().st_size} bytes, the official archive {size}: remove it to '
            f'download it anew, or use it as it is with --data {archive}'
        )
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(f'{archive.name}.part')
    failures = []
    for url in sources:
        try:
            fetch(url, part, size, md5)
            part.replace(archive)
            return archive
        except (DataError, requests.RequestException, ValueError) as error:  # ValueError: a strange answer or URL
            failures.append(f'{url} ({reason(error)})')
    raise DataError(
        f'CelebA could not be downloaded; tried {", ".join(failures)}. '
        f'Get {CELEB_A} ({size} bytes, MD5 {md5}) by hand and put it at {archive}'
    )


def fetch(url, part: Path, size, md5):
    """Complete `part` from `url` and check it; a wrong file is removed. Gives up after ATTEMPTS without more of it."""
    import requests

    resumed = part.exists()
    attempt, most = 1, part.stat().st_size if resumed else 0
    while True:
        try:
            receive(url, part, size)
            break
        except requests.RequestException as error:
            if part.exists() and part.stat().st_size > most:  # not merely more than before: it may begin again
                attempt, most = 1, part.stat().st_size
            status = error.response.status_code if error.response is not None else None
            hopeless = status is not None and 300 <= status < 500 and status not in (408, 416, 429)
            if attempt == ATTEMPTS or hopeless or isinstance(error, ValueError):
                raise
            wait = BACK_OFF * 2 ** (attempt - 1)
            print(f'{reason(error)}; next attempt in {wait:g} s', file=sys.stderr)
            time.sleep(wait)
            attempt += 1
    digest = hashlib.md5()
    with open(part, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != md5:
        part.unlink()
        if resumed:  # what was there before may have been wrong: once more, from the beginning
            return fetch(url, part, size, md5)
        raise DataError(f'its MD5 is {digest.hexdigest()}, not {md5}')


def receive(url, part: Path, size):
    """One request for what `part` still lacks of `size` bytes, appended to it.

    Raises DataError if the answer is not the archive, requests.RequestException if it may come another time.
    """
    import requests

    start = part.stat().st_size if part.exists() else 0
    if start == size:
        return
    headers = {'Accept-Encoding': 'identity'} | ({'Range': f'bytes={start}-'} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # it has no such range: begin again
            part.unlink(missing_ok=True)
        response.raise_for_status()
        if not response.headers.get('Content-Range', '').startswith(f'bytes {start}-'):
            start = 0
        chunks = response.iter_content(1 << 16)
        first = next(chunks, b'')
        if 'html' in response.headers.get('Content-Type', '') or (start == 0 and first.lstrip()[:1] == b'<'):
            raise DataError('it answered with an HTML page, such as Google Drive does when a quota is used up')
        length = int(response.headers.get('Content-Length', size - start))
        if length != size - start or (start == 0 and not first.startswith(b'PK')):
            raise DataError(f'it is not the archive: {start + length} bytes, not {size}, or no zip')
        with (
            naming(part),
            open(part, 'ab' if start else 'wb') as file,
            progress(desc=CELEB_A, total=size, initial=start, unit='B', unit_scale=True) as bar,
        ):
            while first and file.tell() < size:  # more than that it cannot be
                file.write(first)
                bar.update(len(first))
                first = next(chunks, b'')
    if part.stat().st_size < size:
        raise requests.ConnectionError


def reason(error: Exception) -> str:
    """Why a request failed, in a few words."""
    import requests

    if isinstance(error, requests.HTTPError):
        return f'status {error.response.status_code}'
    if isinstance(error, requests.TooManyRedirects):
        return 'it redirects without end'
    if isinstance(error, requests.RequestException):
        return f'no connection, or it broke off: {type(error).__name__}'
    return str(error)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB: 16-bit grey is scaled, transparent parts become white."""
    if image.mode.startswith('I'):  # Pillow would clip, not scale
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image if image.mode == 'RGB' else image.convert('RGB')


def get_image(image_path, width, height, crop=FACE_SIDE) -> np.ndarray:
    """The face in an image file (a path or an open file) as uint8 (height, width, 3).

    An aligned CelebA image (178x218, or another resolution of it) is cropped to its central square of side
    `crop`, the article's 108 pixels, scaled with its width; of any other image the largest central square is
    taken. Bilinear, as published.
    A JPEG with pixels to spare is decoded at a half, a quarter or an eighth of its size: on full-size CelebA,
    at 28x28, that moves a value of 0..255 by 0.9 on average.
    Raises DataError for more than MOST_PIXELS, and nearly any exception, Pillow's, for a broken image.
    """
    with Image.open(image_path, formats=IMAGE_FORMATS) as image:
        if math.prod(image.size) > MOST_PIXELS:  # before anything is decoded
            raise DataError(f'{image.width}x{image.height} are more than {MOST_PIXELS} pixels')
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            ImageOps.exif_transpose(image, in_place=True)  # decodes it whole, as it is
        whole = image.size
        least = min(whole) * crop / ALIGNED_WIDTH  # no crop is smaller
        reduced = image.draft(None, [math.ceil(length * max(width, height) / least) for length in whole])
        scale = reduced[1][2] / whole[0] if reduced else 1
        side = min(whole)
        if whole[1] == round(whole[0] * ALIGNED_HEIGHT / ALIGNED_WIDTH):
            side = max(1, round(whole[0] * crop / ALIGNED_WIDTH))
        left, top = (whole[0] - side) // 2, (whole[1] - side) // 2
        left, top, right, bottom = (edge * scale for edge in (left, top, left + side, top + side))
        x, y = math.floor(left), math.floor(top)
        face = to_rgb(image).crop((x, y, math.ceil(right), math.ceil(bottom)))
    box = (left - x, top - y, right - x, bottom - y)
    return np.asarray(face.resize((width, height), Image.Resampling.BILINEAR, box))


def walk(folder: Path):
    """Yield the files in a folder and those below it, links to folders excepted. Raises OSError."""

    def fail(error):
        raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        yield from (Path(parent, name) for name in names)


def fingerprint(source: Path, image_size, crop=FACE_SIDE) -> str:
    """Changes with the archive, or any file of the folder, with the image size and with the crop."""
    files = sorted(walk(source)) if source.is_dir() else [source]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if os.path.isfile(file)]
    made_from = repr((str(source.resolve()), stats, image_size, crop, PREPARATION))
    return hashlib.blake2s(made_from.encode(), digest_size=8).hexdigest()


def is_image(name) -> bool:
    """Whether a file of this name should be an image, and none that a system hides, as macOS in its zips."""
    path = Path(name)
    if name.endswith('/'):  # a folder in a zip
        return False
    hidden = any(part.startswith(('.', '__MACOSX')) and part != '..' for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def open_source(source: Path):
    """The sorted names of the images in a zip archive or a folder, and a function that opens one.

    The names in an archive are only shown, never names of files. Raises DataError where it is no archive.
    """
    if source.is_dir():
        paths = (path for path in walk(source) if os.path.isfile(path) or not os.path.exists(path))  # a broken link
        names = (str(path.relative_to(source)) for path in paths)
        return sorted(filter(is_image, names)), lambda name: open(source / name, 'rb')
    try:
        archive = zipfile.ZipFile(source)
    except Exception as error:  # a broken archive makes zipfile raise nearly anything
        raise DataError(f'{source} is neither a folder nor a zip archive that can be read: {error}') from None

    def open_entry(name):
        if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError('neither stored nor deflated')  # zipfile sets no bound to what others grow to
        return archive.open(name)

    return sorted(filter(is_image, archive.namelist())), open_entry


def open_faces(path: Path, image_size) -> np.ndarray | None:
    """The faces in a .npy file, memory-mapped, uint8 (N, image_size, image_size, 3).

    None if the file is not there, or damaged and so to be made anew, which stderr is told. Raises OSError.
    """
    try:
        faces = np.load(path, mmap_mode='r', allow_pickle=False)
        if faces.dtype == np.uint8 and faces.shape[1:] == (image_size, image_size, 3):
            return faces
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception:  # a broken header makes NumPy raise nearly anything
        pass
    print(f'{path} is damaged, and made anew', file=sys.stderr)
    return None


def load_faces(source, image_size, cache_dir, crop=FACE_SIDE) -> np.ndarray:
    """All faces of `source` (a zip archive or a folder of images) as uint8 (N, image_size, image_size, 3).

    Memory-mapped from a .npy file in `cache_dir`, which is made the first time, on all cores. Images that
    cannot be read are left out and counted on stderr, the first MOST_NAMED by name; more than MOST_UNREADABLE
    of them raise DataError, as does a source without images. Raises OSError where it cannot be opened.
    """
    source = Path(source)
    source.stat()  # where there is nothing, or a loop of links, it raises an error that says so
    prepared = Path(cache_dir) / f'{source.stem}-{image_size}-{fingerprint(source, image_size, crop)}.npy'
    faces = open_faces(prepared, image_size)
    if faces is None:
        names, open_image = open_source(source)
        if not names:
            raise DataError(f'{source}: no images in it ({" ".join(sorted(IMAGE_SUFFIXES))})')
        save_faces(prepared, image_size, len(names), read_faces(source, names, open_image, image_size, crop))
        faces = open_faces(prepared, image_size)
    return faces


def decode(open_image, image_size, crop, names) -> list:
    """Of each of the images `names` the face, uint8 (image_size, image_size, 3), or in words why there is none."""
    faces = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's, about what does no harm to the pixels
        for name in names:
            try:
                with open_image(name) as file:
                    content = file.read(MOST_BYTES + 1)
                if len(content) > MOST_BYTES:
                    raise DataError(f'more than {MOST_BYTES} bytes')
                faces.append(get_image(io.BytesIO(content), image_size, image_size, crop))
            except UnidentifiedImageError:
                faces.append('no image of a known kind')
            except Exception as error:  # a broken image makes Pillow and zipfile raise nearly anything
                faces.append(str(error) or type(error).__name__)
    return faces


opened = functools.cache(open_source)  # once in a worker process


def decode_in_worker(source: Path, image_size, crop, names) -> list:
    """`decode`, in a process of its own."""
    return decode(opened(source)[1], image_size, crop, names)


def begin_worker():
    """Leave Ctrl-C to the parent process, and end with it, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def decoding(source: Path, open_image, image_size, crop, chunks):
    """What `decode` gives for each of `chunks` of names, in order, from as many processes as there are cores."""
    if len(chunks) < LEAST_CHUNKS or os.cpu_count() == 1:
        yield map(functools.partial(decode, open_image, image_size, crop), chunks)
        return
    # Threads would wait for the interpreter's lock; 'spawn' is safe whatever threads there are already.
    spawn = multiprocessing.get_context('spawn')
    pool = ProcessPoolExecutor(os.cpu_count(), spawn, begin_worker)
    try:
        yield pool.map(functools.partial(decode_in_worker, source, image_size, crop), chunks)
    except BrokenProcessPool:
        raise DataError(f'{source}: a process that decoded it was killed, for want of memory perhaps') from None
    finally:
        pool.shutdown(cancel_futures=True)


def read_faces(source, names, open_image, image_size, crop):
    """Yield the faces of the images `names` a chunk at a time, uint8 (n, image_size, image_size, 3)."""
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    unreadable = 0
    with (
        progress(desc='Preparing faces', total=len(names), unit=' images', unit_scale=True) as bar,
        decoding(source, open_image, image_size, crop, chunks) as decoded,
    ):
        for chunk, results in zip(chunks, decoded, strict=True):
            faces = [face for face in results if not isinstance(face, str)]
            for name, why in zip(chunk, results, strict=True):
                if isinstance(why, str):
                    unreadable += 1
                    if unreadable <= MOST_NAMED:  # repr: a name may hold line breaks, and worse
                        bar.write(f'Left out {name!r}: {why}', file=sys.stderr)
            if unreadable > MOST_UNREADABLE * len(names):
                raise DataError(f'{source}: more than {MOST_UNREADABLE:.0%} of its {len(names)} images cannot be read')
            yield np.array(faces, np.uint8).reshape(-1, image_size, image_size, 3)
            bar.update(len(chunk))
    if unreadable:
        print(f'{unreadable} of {len(names)} images could not be read and were left out', file=sys.stderr)


def save_faces(path: Path, image_size, most, blocks):
    """Write `blocks` of faces, at most `most` in all, to the .npy file `path`, which appears when whole."""

    def header(count):
        shape = (count, image_size, image_size, 3)
        np.lib.format.write_array_header_1_0(file, {'descr': '|u1', 'fortran_order': False, 'shape': shape})

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        header(most)
        count = 0
        for block in blocks:
            file.write(block.tobytes())
            count += len(block)
        file.seek(0)
        header(count)  # of the same length: NumPy leaves room for the number to change


def digest(faces) -> str:
    """Tells data sets apart: a hash of their size and of a thousand of their faces."""
    some = np.ascontiguousarray(faces[:: math.ceil(len(faces) / 1000)])
    return hashlib.blake2s(repr(faces.shape).encode() + some.tobytes(), digest_size=8).hexdigest()


def split(count) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of those of `count` faces that are trained on, and of those that are held out: every tenth.

    The rule depends on nothing but the order, that of the names.
    """
    held_out = np.arange(count) % HOLD_OUT == HOLD_OUT - 1
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def sample(numbers, count) -> np.ndarray:
    """At most `count` of `numbers`, random but always the same ones, in order."""
    return np.sort(np.random.default_rng(0).permutation(numbers)[:count])


def get_batch(faces, indices) -> np.ndarray:
    """The faces at `indices`, uint8 (n, H, W, 3); the graph scales them to the article's -0.5..0.5."""
    return faces[indices]


def get_batches(faces, batch_size, seed, epoch, start=0, part=slice(None)):
    """Yield the batches of an epoch from number `start` on, uint8 (batch_size, H, W, 3); of each this `part`.

    The order is a permutation, decided by (seed, epoch), of those of `faces` that are trained on (see `split`).
    The rest that fills no batch is left out.
    """
    training, _ = split(len(faces))
    order = np.random.default_rng((seed, epoch)).permutation(training)
    for batch in range(start, len(training) // batch_size):
        yield get_batch(faces, order[batch * batch_size : (batch + 1) * batch_size][part])


def to_uint8(images, value_range) -> np.ndarray:
    """Map `value_range` (low, high) to 0..255, the same for every image; what lies outside is clipped."""
    low, high = value_range
    return np.rint((np.asarray(images, np.float32) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)


def images_square_grid(images, value_range=(0, 255), columns=None) -> Image.Image:
    """Lay out images (N, H, W, 3) row by row, left to right, in the smallest square that holds them.

    value_range: what becomes black and white: 0..255 of `get_batches`, or -1..1 of the generator.
    columns: so many in a row, and not a square. A last row that is not full ends in black.
    """
    images = to_uint8(images, value_range)
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.zeros((rows * columns, height, width, channels), np.uint8)
    grid[:count] = images
    grid = grid.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(rows * height, columns * width, channels))
