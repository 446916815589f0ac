"""Metadata of image files: the EXIF orientation is read, and everything that does not make the pixels is removed.

Then no EXIF block, XMP packet, text or color profile can turn an image wrong or keep Pillow from reading it.
Checksums that Pillow skips are verified on the way.
"""

import struct
import zlib

from dataset import DataError

ORIENTATION = 0x0112  # TIFF tag, also in EXIF blocks, which are small TIFF files
# TIFF tags that describe the pixels: size, samples, compression, strips, tiles, palette, JPEG tables, subsampling.
PIXEL_TAGS = {
    256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 281, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339,
    341, 347, 530,
}  # fmt: skip
WEBP_CHUNKS = {b'VP8 ', b'VP8L', b'VP8X', b'ALPH', b'ANIM', b'ANMF'}  # kinds with pixels
WEBP_FLAGS = 0x12  # bits of VP8X that stand for transparency and animation


def remove_metadata(content: bytes) -> tuple[bytes, int]:
    """Returns an image file without its metadata, and its EXIF orientation, 1 (upright) to 8.

    Raises DataError if the file is of no known format, truncated, or a checksum does not match.
    """
    view = memoryview(content)
    try:
        if content.startswith(b'\x89PNG\r\n\x1a\n'):
            kept, blocks = split_png(view)
        elif content.startswith(b'\xff\xd8\xff'):
            kept, blocks = split_jpeg(content, view)
        elif content.startswith(b'RIFF') and content[8:12] == b'WEBP':
            kept, blocks = split_webp(view)
        elif content.startswith((b'II', b'MM')) and content[2:4].strip(b'\0') in (b'*', b'+'):
            kept, blocks = split_tiff(view)
        else:
            return content, 1
    except (struct.error, ValueError, IndexError, OverflowError):  # a position after the end
        raise DataError('truncated') from None
    return b''.join(kept), next(filter(None, map(read_orientation, blocks)), 1)


def split_png(view):
    """The chunks of a PNG file that make its pixels, verified by their checksums, and its EXIF blocks."""
    # length, kind, content, CRC of kind and content | ... | IEND
    kept, blocks, start, kind = [view[:8]], [], 8, b''
    while kind != b'IEND':
        length, kind = struct.unpack_from('>I4s', view, start)
        chunk = view[start : start + length + 12]
        start += length + 12
        if kind[:1].isupper() or kind == b'tRNS':  # a capital letter marks chunks that are critical
            if struct.unpack_from('>I', chunk, length + 8) != (zlib.crc32(chunk[4:-4]),):
                raise DataError(f'damaged: the checksum of a {kind.decode("latin-1")} chunk does not match')
            kept.append(chunk)
        elif kind == b'eXIf':
            blocks.append(chunk[8:-4])
    return kept, blocks


def split_jpeg(content, view):
    """The segments of a JPEG file without comments and APPn, except those that define colors, and its EXIF blocks."""
    # FF D8 | FF marker, length, content | ... | FF DA, the pixels. Like decoders, skip what lies between segments.
    kept, blocks, kept_to, end, start = [], [], 0, 2, content.index(b'\xff', 2)
    while (marker := content[start + 1]) != 0xDA:
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or marker == 0xFF:  # padding, and markers without a length
            start = content.index(b'\xff', start + 1)
            continue
        length = content[start + 2] << 8 | content[start + 3]
        following = content.index(b'\xff', start + 2 + length)
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            jfif, adobe = marker == 0xE0 and length >= 16, marker == 0xEE and length >= 14
            if content.startswith(b'Exif\0', start + 4):
                blocks.append(view[start + 10 : start + 2 + length])
            if not jfif and not adobe:
                kept.append(view[kept_to:end])
                kept_to = following
        end, start = start + 2 + length, following
    return [*kept, view[kept_to:]], blocks


def split_webp(view):
    """The chunks of a WebP file that make its pixels, and its EXIF blocks."""
    # RIFF, size, WEBP | kind, length, content, padding to an even length | ...
    kept, blocks, start = [], [], 12
    end = 8 + struct.unpack_from('<I', view, 4)[0]
    if end > len(view) + 1:  # the last byte may be padding
        raise DataError('truncated')
    while start + 8 <= end:
        kind, length = struct.unpack_from('<4sI', view, start)
        chunk = view[start : start + 8 + length]
        if kind == b'VP8X':
            chunk = bytes([*chunk[:8], chunk[8] & WEBP_FLAGS, *chunk[9:]])
        if kind in WEBP_CHUNKS:
            kept += [chunk, bytes(length % 2)]
        elif kind == b'EXIF':
            blocks.append(chunk[8:])
        start += 8 + length + length % 2
    size = sum(map(len, kept)) + 4
    return [b'RIFF', struct.pack('<I', size), b'WEBP', *kept], blocks


def split_tiff(view):
    """A TIFF file that lists only its first image and the tags that make its pixels, and the whole file."""
    order, offset, start, entries = read_directory(view)
    kept = []
    for entry in entries:
        tag, _, count = struct.unpack_from(order + 'HH' + offset, entry)
        if tag in PIXEL_TAGS and count <= len(view):
            kept.append(entry)
    header = struct.pack(order + ('H' if offset == 'I' else 'Q'), len(kept))
    directory = b''.join([header, *kept, bytes(struct.calcsize(offset))])  # position of the next image: none
    return [view[:start], directory, view[start + len(directory) :]], [view]


def read_directory(view):
    """The first directory of TIFF data: byte order, code of its offsets, position, and entries."""
    # BigTIFF has wider numbers: II or MM, version, [2 shorts,] position of: count | tag, type, count, value | ...
    order = '<' if view[:2] == b'II' else '>'
    big = struct.unpack_from(order + 'H', view, 2) == (43,)
    offset, position, code, size = ('Q', 8, 'Q', 20) if big else ('I', 4, 'H', 12)
    (start,) = struct.unpack_from(order + offset, view, position)
    (count,) = struct.unpack_from(order + code, view, start)
    first = start + struct.calcsize(code)
    count = min(count, (len(view) - first) // size)
    return order, offset, start, [view[first + i * size : first + (i + 1) * size] for i in range(count)]


def read_orientation(block) -> int | None:
    """The orientation, 1 to 8, that an EXIF block or a TIFF file gives, or None."""
    block = block[6:] if block[:5] == b'Exif\0' else block
    try:
        order, offset, _, entries = read_directory(block)
    except (struct.error, IndexError, OverflowError):  # damaged
        return None
    for entry in entries:
        tag, kind, count = struct.unpack_from(order + 'HH' + offset, entry)
        if tag == ORIENTATION and count == 1 and kind in (3, 4):  # SHORT, LONG
            (value,) = struct.unpack_from(order + ('H' if kind == 3 else 'I'), entry, 4 + struct.calcsize(offset))
            if 1 <= value <= 8:
                return value
    return None
