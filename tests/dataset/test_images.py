"""Image files: of every format and mode, transparent, huge, tiny, and damaged."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import encode
from dataset_helpers import PYTHON
from image_files import chunk
from PIL import Image

from dataset import DataError
from dataset.images import MAX_PIXELS, crop_and_resize, open_image


def read(file, side) -> np.ndarray:
    """The whole of a square image at another size."""
    with open_image(file) as image:
        return np.asarray(crop_and_resize(image, (0, 0, *image.size), (side, side), min(image.size)))


def color(image: Image.Image, **options) -> tuple[int, ...]:
    """The one color of an image after it was saved and read again."""
    file = io.BytesIO()
    image.save(file, **({'format': 'PNG'} | options))
    pixels = read(file, 4)
    assert pixels.shape == (4, 4, 3) and pixels.dtype == np.uint8 and (pixels == pixels[0, 0]).all()
    return tuple(pixels[0, 0].tolist())


def test_grey_palette_cmyk_and_16_bit_images_become_rgb():
    red = Image.new('RGB', (8, 8), (255, 0, 0))
    assert color(Image.new('L', (8, 8), 77)) == (77, 77, 77)
    assert color(red.convert('P')) == (255, 0, 0)
    assert color(Image.new('CMYK', (8, 8), (0, 255, 255, 0)), format='TIFF') == (255, 0, 0)
    assert color(Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))) == (128, 128, 128)
    assert color(Image.new('1', (8, 8), 1)) == (255, 255, 255)


def test_transparent_parts_become_white():
    assert color(Image.new('RGBA', (8, 8), (255, 0, 0, 0))) == (255, 255, 255)
    assert color(Image.new('RGBA', (8, 8), (255, 0, 0, 255))) == (255, 0, 0)
    assert color(Image.new('LA', (8, 8), (0, 0))) == (255, 255, 255)
    assert color(Image.new('P', (8, 8), 0), transparency=0) == (255, 255, 255)


def large_png(side) -> bytes:
    """A black PNG image with one bit per pixel."""
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0))
    pixels = chunk(b'IDAT', zlib.compress(bytes((1 + (side + 7) // 8) * side), 1))
    return b'\x89PNG\r\n\x1a\n' + header + pixels + chunk(b'IEND', b'')


def test_large_and_tiny_images_within_the_limit_are_read():
    assert read(io.BytesIO(large_png(8192)), 28).max() == 0
    pixels = read(io.BytesIO(encode(np.full((1, 1, 3), 200))), 28)
    assert pixels.shape == (28, 28, 3) and (pixels == 200).all()


# Not ru_maxrss, which starts with the size of the process that started this one.
MEASURED = """
import re, sys
import helper
helper.get_image(sys.argv[1], 28, 28)
print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='/proc is a part of Linux')
def test_a_transparent_and_turned_image_of_the_largest_size_takes_less_than_1_gb(tmp_path):
    side, deflate = 8192, zlib.compressobj(1)
    pixels = b''.join(deflate.compress(bytes(1 + 4 * side)) for _ in range(side)) + deflate.flush()
    header = struct.pack('>IIBBBBB', side, side, 8, 6, 0, 0, 0)
    turned = b'MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0'
    chunks = chunk(b'IHDR', header), chunk(b'eXIf', turned), chunk(b'IDAT', pixels), chunk(b'IEND', b'')
    (tmp_path / 'large.png').write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(chunks))
    command = [sys.executable, '-c', MEASURED, tmp_path / 'large.png']
    assert int(subprocess.run(command, check=True, **PYTHON).stdout) << 10 < 1_000_000_000


def test_an_image_of_too_many_pixels_is_an_error():
    with pytest.raises(DataError, match=f'8193x8193 is more than {MAX_PIXELS} pixels'):
        read(io.BytesIO(large_png(8193)), 28)


@pytest.mark.parametrize('content', [b'', b'text', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n'])
def test_a_file_of_an_unknown_format_is_an_error(content):
    with pytest.raises(DataError, match='not an image of a known format'):
        read(io.BytesIO(content), 28)


def test_only_as_many_pixels_of_a_jpeg_are_decoded_as_are_needed():
    file = io.BytesIO(encode(np.zeros((64, 64, 3)), 'JPEG'))
    for draft_side, decoded in ((64, 8), (56, 16), (32, 16), (16, 32), (8, 64)):  # for 8 pixels of draft_side
        with open_image(file) as image:
            crop_and_resize(image, (0, 0, 64, 64), (8, 8), draft_side)
            assert image.size == (decoded, decoded)
