"""Image files that Pillow cannot write, made byte by byte for the tests of dataset/."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

# Grey of four quadrants, 64x64
GREY = np.kron([[40, 90], [160, 220]], np.ones((32, 32), int))
COLORS = np.zeros((64, 64, 3), np.uint8)  # the quadrants red, green, blue, grey
COLORS[:32, :32], COLORS[:32, 32:], COLORS[32:, :32], COLORS[32:, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 128


def quadrants(pixels) -> list:
    """The value in the middle of each quadrant of a 64x64 image; one number where it is grey."""
    values = [pixels[y, x].tolist() for y in (16, 48) for x in (16, 48)]
    return [value[0] if len(set(value)) == 1 else value for value in values]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def png(samples, bits: int, color: int, *chunks: bytes, width=64) -> bytes:
    """A PNG file of samples (height, samples per row) with a color type and further chunks before the pixels."""
    rows = b''.join(b'\0' + pack(row, bits) for row in np.asarray(samples))
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, len(samples), bits, color, 0, 0, 0))
    pixels = chunk(b'IDAT', zlib.compress(rows, 1))
    return b'\x89PNG\r\n\x1a\n' + header + b''.join(chunks) + pixels + chunk(b'IEND', b'')


def pack(row, bits: int) -> bytes:
    """Samples of 1, 2, 4, 8, 12 or 16 bits, big-endian."""
    if bits == 16:
        return np.asarray(row, '>u2').tobytes()
    return np.packbits([[int(bit) for bit in f'{value:0{bits}b}'] for value in row]).tobytes()


def tiff(samples: bytes, tags: dict, order='<', planes=1) -> bytes:
    """A TIFF file, 64x64, of one strip or plane after another. tags: lists of floats, or of integers as LONG."""
    counts = [len(samples) // planes] * planes
    tags = {256: [64], 257: [64], 259: [1], 273: counts, 277: [1], 278: [64], 279: counts} | tags
    position = 8 + 2 + 12 * len(tags) + 4
    start = position + sum(4 * len(values) for values in tags.values() if len(values) > 1)
    tags[273] = [start + index * counts[0] for index in range(planes)]
    entries, data = b'', b''
    for tag, values in sorted(tags.items()):
        code, kind = ('f', 11) if isinstance(values[0], float) else ('I', 4)
        packed = struct.pack(f'{order}{len(values)}{code}', *values)
        if len(values) > 1:
            packed, data = struct.pack(order + 'I', position + len(data)), data + packed
        entries += struct.pack(order + 'HHI', tag, kind, len(values)) + packed
    header = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'IH', 8, len(tags))
    return header + entries + bytes(4) + data + samples


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    """The file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()
