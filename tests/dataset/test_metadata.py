"""Metadata: the orientation is read, nothing else matters, and damage that a checksum shows is noticed."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from image_files import COLORS, chunk, saved
from PIL import Image
from PIL.Image import Transpose

import helper
from dataset import DataError

# How an upright image is stored, for each EXIF orientation
STORED = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_270,
}  # fmt: skip
FORMATS = ('JPEG', 'PNG', 'WEBP', 'TIFF')
OTHER_TAGS = [0x010E, 0x010F, 0x011A, 0x011B, 0x0128, 0x0132, 0x0201, 0x0202, 0x0213, 0x02BC, 0x8769, 0x8825, 0x8773]
SHORT, LONG = 3, 4


def entry(order, tag, kind, count, value) -> bytes:
    return struct.pack(order + 'HHI', tag, kind, count) + struct.pack(order + ('HH' if kind == SHORT else 'I'), *value)


def exif_block(entries, order='<', count=None, following=0) -> bytes:
    """An EXIF block of packed entries."""
    start = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'IH', 8, count or len(entries))
    return start + b''.join(entries) + struct.pack(order + 'I', following)


def orientation(value, order='<', kind=SHORT, count=1) -> bytes:
    return entry(order, 0x0112, kind, count, (value, 0) if kind == SHORT else (value,))


def stored(value: int) -> Image.Image:
    image = Image.fromarray(COLORS)
    return image.transpose(STORED[value]) if value in STORED else image


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG file."""
    return struct.pack('>BBH', 0xFF, marker, len(content) + 2) + content


def with_exif(image: Image.Image, image_format: str, block: bytes, xmp=b'', before=()) -> bytes:
    """An image file with an EXIF block and an XMP packet. before: further PNG chunks or JPEG segments."""
    if image_format == 'JPEG':
        content = saved(image, 'JPEG', quality=95, subsampling=0)
        packets = [segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0' + xmp), segment(0xE1, b'Exif\0\0' + block)]
        return content[:2] + b''.join([*before, *packets]) + content[2:]
    if image_format == 'PNG':
        content = saved(image, 'PNG')
        packets = [chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + xmp), chunk(b'eXIf', block)]
        return content[:33] + b''.join([*before, *packets]) + content[33:]
    if image_format == 'WEBP':
        chunks = [(b'VP8X', struct.pack('<I', 0x0C) + b'\x3f\0\0\x3f\0\0'), (b'EXIF', block), (b'XMP ', xmp)]
        head, exif, packet = (
            kind + struct.pack('<I', len(data)) + data + bytes(len(data) % 2) for kind, data in chunks
        )
        content = head + saved(image, 'WEBP', lossless=True)[12:] + exif + packet
        return b'RIFF' + struct.pack('<I', len(content) + 4) + b'WEBP' + content
    # Move the directory of a little-endian TIFF file to its end, with the entries of the block.
    content = saved(image, 'TIFF', compression='tiff_lzw')
    (start,) = struct.unpack_from('<I', content, 4)
    (count,) = struct.unpack_from('<H', content, start)
    own = content[start + 2 : start + 2 + 12 * count]
    return content[:4] + struct.pack('<I', len(content)) + content[8:] + struct.pack(
        '<H', count + (len(block) - 14) // 12
    ) + own + block[10:]  # fmt: skip


def face(content: bytes) -> np.ndarray:
    return helper.get_image(io.BytesIO(content), 64, 64).astype(int)


def is_upright(content: bytes) -> bool:
    return np.abs(face(content) - COLORS)[8::16, 8::16].max() < 8


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('kind', [SHORT, LONG])
@pytest.mark.parametrize('image_format', FORMATS)
def test_every_orientation_is_turned_upright(image_format, kind, order):
    order = '<' if image_format == 'TIFF' else order  # the order of the file
    for value in range(1, 9):
        block = exif_block([orientation(value, order, kind)], order)
        xmp = b'<rdf:Description tiff:Orientation="%d"/>' % (value % 8 + 1)  # contradicts: EXIF counts
        assert is_upright(with_exif(stored(value), image_format, block, xmp)), value


@pytest.mark.parametrize('image_format', FORMATS)
@pytest.mark.parametrize(
    'value, kind, count',
    [(0, SHORT, 1), (9, SHORT, 1), (65535, SHORT, 1), (6, LONG, 2), (6, SHORT, 0), (6, 2, 1), (6, 7, 1), (6, 12, 1)],
)
def test_an_invalid_orientation_leaves_the_image_as_stored(image_format, value, kind, count):
    block = exif_block([orientation(value, '<', kind, count)])
    assert is_upright(with_exif(stored(1), image_format, block))


def test_an_orientation_in_xmp_or_text_counts_for_nothing():
    for image_format in FORMATS[:3]:
        assert is_upright(with_exif(stored(1), image_format, b'', b'<rdf:Description tiff:Orientation="6"/>'))
    profile = b'Raw profile type exif\0\nexif\n      26\n' + exif_block([orientation(6)]).hex().encode()
    assert is_upright(with_exif(stored(1), 'PNG', b'', before=[chunk(b'tEXt', profile)]))


def random_block(rng: random.Random, image_format: str, value: int) -> bytes:
    """An EXIF block of random, mostly damaged entries around a valid orientation."""
    order = '<' if image_format == 'TIFF' else rng.choice('<>')
    entries = [orientation(value, order, rng.choice((SHORT, LONG)))]
    for _ in range(rng.randrange(30)):
        kind = rng.choice((0, 1, 2, 5, 7, 9, 10, 11, 12, 13, 99))
        count, data = (rng.choice((0, 1, 8, 65535, 1 << 31, rng.randrange(1 << 32))) for _ in range(2))
        entries.insert(rng.randrange(len(entries) + 1), entry(order, rng.choice(OTHER_TAGS), kind, count, (data,)))
    if image_format == 'TIFF':
        return exif_block(entries)
    claimed, following = rng.choice((None, 65535, len(entries) + 1)), rng.choice((0, 8, rng.randrange(1 << 32)))
    return exif_block(entries, order, claimed, following) + rng.randbytes(rng.randrange(99))


def test_no_random_exif_block_turns_an_image_or_leaves_it_out():
    rng = random.Random(0)
    for index in range(100):
        image_format, value = rng.choice(FORMATS), rng.randrange(1, 9)
        block = random_block(rng, image_format, value)
        assert is_upright(with_exif(stored(value), image_format, block, rng.randbytes(50))), (index, image_format)


@pytest.mark.parametrize(
    'image_format, parts',
    [
        ('PNG', [chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(3 << 20)))]),  # larger than Pillow's limit
        ('PNG', [chunk(b'tEXt', b'a\0' + bytes(1 << 20))] * 80),
        ('PNG', [chunk(b'tEXt', b'a\0b')[:-1] + b'!']),  # a wrong checksum
        ('PNG', [chunk(b'iTXt', b'\xff' * 9), chunk(b'pHYs', b''), chunk(b'gAMA', b''), chunk(b'cHRM', b'1')]),
        ('PNG', [chunk(b'iCCP', b'a\0\1'), chunk(b'sRGB', b''), chunk(b'acTL', b'1'), chunk(b'fcTL', bytes(26))]),
        ('JPEG', [segment(0xE2, b'MPF\0' + bytes(5)), segment(0xE2, b'ICC_PROFILE\0'), segment(0xFE, b'')]),
        ('JPEG', [segment(0xED, b'Photoshop 3.0\x008BIM'), segment(0xEE, b'Adobe'), segment(0xE0, b'JFIF')]),
        ('JPEG', [b'\xff', segment(0xE1, b'Exif\0\0'), b'junk']),
    ],
)
def test_damaged_metadata_does_not_leave_an_image_out(image_format, parts):
    assert is_upright(with_exif(stored(6), image_format, exif_block([orientation(6)]), before=parts))


def test_a_jpeg_of_several_images_shows_the_first():
    content = saved(stored(1), 'MPO', save_all=True, append_images=[stored(3)], quality=95, subsampling=0)
    assert is_upright(content)


# --- Damage


def test_any_damaged_byte_of_a_png_is_noticed():
    palette = Image.fromarray(COLORS).convert('P')
    for image, options in ((Image.fromarray(COLORS), {}), (palette, {'transparency': 0})):
        content = saved(image, 'PNG', **options)
        for position in range(8, len(content)):
            damaged = bytearray(content)
            damaged[position] ^= 1
            if options and b'tRNS' not in damaged:
                continue  # another name makes it a chunk that may be ignored
            with pytest.raises(Exception):  # noqa: B017 (any exception: see get_image)
                face(bytes(damaged))


@pytest.mark.parametrize('image_format', [*FORMATS, 'GIF', 'BMP', 'PPM'])
def test_a_truncated_file_is_noticed(image_format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    content = saved(noise, image_format)
    assert face(content).shape == (64, 64, 3)
    for part in (0.3, 0.6, 0.9, 0.99):
        with pytest.raises(Exception):  # noqa: B017 (any exception: see get_image)
            face(content[: int(len(content) * part)])


def test_a_png_whose_end_was_never_written_is_an_error_of_one_line():
    content = saved(Image.fromarray(COLORS), 'PNG')
    with pytest.raises(DataError, match='^damaged: the checksum of a IDAT chunk does not match$'):
        face(content[:-20] + bytes(20))
    with pytest.raises(DataError, match='^truncated$'):
        face(content[:-12])
