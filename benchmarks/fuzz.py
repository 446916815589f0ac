"""Feed broken images and archives to the preparation. It must end in faces or in an OSError, never in anything else.

    python benchmarks/fuzz.py --minutes 5

Starts from a small image of every format and mode, and from archives of them, and overwrites, removes, repeats and
splices their bytes. Prints a shrunk example of what goes wrong: a crash or another exception, a traceback or a warning
on stderr, faces of the wrong shape, or an image that takes more than MAX_SECONDS.
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
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

import helper
from dataset import prepared

MAX_SECONDS = 5
EDGE_VALUES = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)


def images() -> list[bytes]:
    """A small image file of each format, and of each mode and option that is decoded in its own way."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), np.uint8)
    rgba = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    modes = {mode: rgba.convert('RGB').convert(mode) for mode in ('1', 'L', 'P', 'RGB', 'CMYK', 'I', 'F')}
    modes |= {'RGBA': rgba, 'LA': rgba.convert('LA'), 'I;16': Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)}
    options: dict = {
        'JPEG': ({'exif': exif}, {'progressive': True}),
        'PNG': ({'exif': exif}, {'transparency': 0}),
        'TIFF': tuple({'compression': name} for name in ('raw', 'tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'jpeg')),
        'WEBP': ({'lossless': True}, {'exif': exif}),
        'GIF': ({'transparency': 0}, {'save_all': True, 'append_images': [rgba]}),
        'BMP': ({},),
        'PPM': ({},),
    }
    files = []
    for image_format, image in itertools.product(options, modes.values()):
        for option in options[image_format]:
            file = io.BytesIO()
            with contextlib.suppress(OSError, ValueError, KeyError):  # not every format has every mode
                image.save(file, image_format, **option)
                files.append(file.getvalue())
    return files


def zipped(files) -> bytes:
    """A zip archive of image files, stored and deflated in turn."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for index, content in enumerate(files):
            archive.writestr(f'{index}.png', content, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[index % 2])
    return file.getvalue()


def with_checksums(png: bytes) -> bytes:
    """Correct the checksums of a mutated PNG file. Otherwise its chunks would be rejected unread."""
    chunks, position = [png[:8]], 8
    while position + 12 <= len(png):
        (length,) = struct.unpack('>I', png[position : position + 4])
        content = png[position + 4 : position + 8 + length]
        chunks.append(png[position : position + 4] + content + struct.pack('>I', zlib.crc32(content)))
        position += 12 + length
    return b''.join(chunks)


@st.composite
def mutated(draw, originals):
    """One of `originals` with some of its bytes overwritten, removed, repeated, or taken from another one."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        position = draw(st.integers(0, max(0, len(content) - 1)))
        mutation = draw(st.sampled_from(('byte', 'byte', 'integer', 'cut', 'remove', 'repeat', 'splice')))
        if mutation == 'byte':
            content[position : position + 1] = bytes([draw(st.sampled_from(EDGE_VALUES) | st.integers(0, 255))])
        elif mutation == 'integer':
            value = draw(st.sampled_from((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)) | st.integers(0, 1 << 17))
            content[position : position + 4] = struct.pack(draw(st.sampled_from('<>')) + 'I', value)
        elif mutation == 'cut':
            del content[position:]
        elif mutation == 'remove':
            del content[position : position + draw(st.integers(1, 64))]
        elif mutation == 'repeat':
            repeated = content[position : position + draw(st.integers(1, 64))]
            content[position:position] = repeated * draw(st.integers(1, 64))
        else:
            other = draw(st.sampled_from(originals))
            content[position:] = other[draw(st.integers(0, len(other))) :]
    return with_checksums(bytes(content)) if content.startswith(b'\x89PNG') else bytes(content)


@contextlib.contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Yield a list that receives the lines written to stderr, by C libraries too."""
    lines: list[str] = []
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            lines += file.read().decode(errors='replace').splitlines()


def check_loading(source: Path) -> None:
    """Load the faces of `source`, which may raise OSError and nothing else."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as cache_dir, captured_stderr() as lines:
        with contextlib.suppress(OSError):
            faces = helper.load_faces(source, 28, cache_dir).faces
            assert faces.shape[1:] == (28, 28, 3) and faces.dtype == np.uint8
        assert not any(name.startswith('.') for name in os.listdir(cache_dir))
    assert not any('Traceback' in line or 'Warning' in line for line in lines), lines  # libtiff may print messages
    assert time.monotonic() - began < MAX_SECONDS


def fuzz(contents, path: Path, source: Path, seconds: float) -> int:
    """Write examples of the strategy `contents` to `path` and load `source`. Returns how many there were."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:

        @hypothesis.seed(count)
        @hypothesis.settings(
            max_examples=2000, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(contents)
        def run(content):
            nonlocal count
            if time.monotonic() < end:
                count += 1
                path.write_bytes(content)
                check_loading(source)

        run()
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=5)
    seconds = 60 * parser.parse_args().minutes / 2
    prepared.MAX_UNREADABLE = 0.99  # an archive with one good image is read to its end
    originals = images()
    archives = [zipped(originals[start : start + 3]) for start in range(0, len(originals), 3)]
    with tempfile.TemporaryDirectory() as temporary:
        folder, archive = Path(temporary, 'images'), Path(temporary, 'faces.zip')
        folder.mkdir()
        print(f'{fuzz(mutated(originals), folder / "image.png", folder, seconds)} images')
        print(f'{fuzz(mutated(archives), archive, archive, seconds)} archives')


if __name__ == '__main__':
    main()
