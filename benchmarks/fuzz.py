"""What do broken images and archives make of the preparation? Anything but a face or an error that is named is a bug.

    python benchmarks/fuzz.py --minutes 5

Starts from a small image of every kind and mode and from archives of them, cuts, overwrites and repeats their bytes,
and shrinks what goes wrong: a crash or another exception, a traceback or a warning on stderr, an image that takes
more than SECONDS, a face of another shape.
"""

import argparse
import contextlib
import io
import itertools
import os
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

import helper

SECONDS = 5
INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)


def images() -> list[bytes]:
    """A small image file of each format, and of the modes and options that are decoded in ways of their own."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), np.uint8)
    rgba = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    modes = {mode: rgba.convert('RGB').convert(mode) for mode in ('1', 'L', 'P', 'RGB', 'CMYK', 'I', 'F')}
    modes |= {'RGBA': rgba, 'LA': rgba.convert('LA'), 'I;16': Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)}
    options = {
        'JPEG': ({'exif': exif}, {'progressive': True}),
        'PNG': ({'exif': exif}, {'transparency': 0}),
        'TIFF': tuple({'compression': name} for name in ('raw', 'tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'jpeg')),
        'WEBP': ({'lossless': True}, {'exif': exif}),
        'GIF': ({'transparency': 0}, {'save_all': True, 'append_images': [rgba]}),
        'BMP': ({},),
        'PPM': ({},),
    }
    files = []
    for kind, image in itertools.product(options, modes.values()):
        for option in options[kind]:
            file = io.BytesIO()
            with contextlib.suppress(OSError, ValueError, KeyError):  # not every format has every mode
                image.save(file, kind, **option)
                files.append(file.getvalue())
    return files


def archive(entries) -> bytes:
    """A zip archive of image files, stored and deflated in turn."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as written:
        for number, content in enumerate(entries):
            written.writestr(f'{number}.png', content, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2])
    return file.getvalue()


def checked(png: bytes) -> bytes:
    """A PNG file whose checksums are right again, so that what was changed is looked at."""
    chunks, at = [png[:8]], 8
    while at + 12 <= len(png):
        (length,) = struct.unpack('>I', png[at : at + 4])
        content = png[at + 4 : at + 8 + length]
        chunks.append(png[at : at + 4] + content + struct.pack('>I', zlib.crc32(content)))
        at += 12 + length
    return b''.join(chunks)


@st.composite
def mutated(draw, originals):
    """One of `originals` with some of its bytes overwritten, removed, repeated or taken from another."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(('byte', 'byte', 'number', 'cut', 'remove', 'repeat', 'splice')))
        if kind == 'byte':
            content[at : at + 1] = bytes([draw(st.sampled_from(INTERESTING) | st.integers(0, 255))])
        elif kind == 'number':
            number = draw(st.sampled_from((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)) | st.integers(0, 1 << 17))
            content[at : at + 4] = struct.pack(draw(st.sampled_from('<>')) + 'I', number)
        elif kind == 'cut':
            del content[at:]
        elif kind == 'remove':
            del content[at : at + draw(st.integers(1, 64))]
        elif kind == 'repeat':
            content[at:at] = content[at : at + draw(st.integers(1, 64))] * draw(st.integers(1, 64))
        else:
            other = draw(st.sampled_from(originals))
            content[at:] = other[draw(st.integers(0, len(other))) :]
    content = bytes(content)
    return checked(content) if content.startswith(b'\x89PNG') else content


@contextlib.contextmanager
def stderr():
    """Yield a list that gets the lines written to stderr, those of C libraries too."""
    lines = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += file.read().decode(errors='replace').splitlines()


def load(path: Path):
    """Prepare the faces of a file, which may raise OSError and nothing else."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as cache, stderr() as lines:
        with contextlib.suppress(OSError):
            faces = helper.load_faces(path, 28, cache)
            assert faces.shape[1:] == (28, 28, 3) and faces.dtype == np.uint8
        assert not any(name.startswith('.') for name in os.listdir(cache))
    assert not any('Traceback' in line or 'Warning' in line for line in lines), lines  # libtiff may have its say
    assert time.monotonic() - began < SECONDS


def fuzz(content, check, seconds):
    """Call `check` with examples of the strategy `content` for so many seconds; returns how many there were."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:

        @hypothesis.seed(count)
        @hypothesis.settings(
            max_examples=2000, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(content)
        def run(example):
            nonlocal count
            if time.monotonic() < end:
                count += 1
                check(example)

        run()
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=5)
    seconds = 60 * parser.parse_args().minutes / 2
    helper.MOST_UNREADABLE = 0.99  # an archive with a whole image is read to its end
    originals = images()
    archives = [archive(originals[start : start + 3]) for start in range(0, len(originals), 3)]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / 'images').mkdir()

        def image(content):
            (folder / 'images' / 'image.png').write_bytes(content)
            load(folder / 'images')

        def zipped(content):
            (folder / 'faces.zip').write_bytes(content)
            load(folder / 'faces.zip')

        print(f'{fuzz(mutated(originals), image, seconds)} images')
        print(f'{fuzz(mutated(archives), zipped, seconds)} archives')


if __name__ == '__main__':
    main()
