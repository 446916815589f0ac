"""Image files of unknown origin: opened within limits, cropped and resized."""

import contextlib
import io
import math
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from dataset import DataError
from dataset.metadata import remove_metadata
from dataset.values import to_8_bits, to_rgb

# Pillow knows more formats, some of which run other programs: EPS starts Ghostscript.
FORMATS = ('BMP', 'DIB', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
MAX_PIXELS = 1 << 26  # size limit of an image, 8192x8192: decoding one takes less than 1 GB, of WebP 1.5 GB
# Operations that turn an image upright, by its EXIF orientation
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


@contextlib.contextmanager
def open_image(file):
    """Open an image file (a path or an open file), with 8-bit samples and upright according to its EXIF data.

    Raises DataError for an unknown format, too many pixels, values of an unknown range or a wrong checksum. Broken
    images can raise any exception, even later.
    """
    if isinstance(file, str | Path):
        content = Path(file).read_bytes()
    else:
        file.seek(0)
        content = file.read()
    content, orientation = remove_metadata(content)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow warns of flaws that do not affect the pixels
        try:
            image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:
            raise DataError('not an image of a known format, or of a kind that Pillow cannot read') from None
        # Only the header has been read so far: check the size before anything is decoded.
        if math.prod(image.size) > MAX_PIXELS:
            raise DataError(f'{image.width}x{image.height} is more than {MAX_PIXELS} pixels')
        image = to_8_bits(image, content)
        if orientation in UPRIGHT:
            image = image.transpose(UPRIGHT[orientation])
        yield image


def crop_and_resize(image, box, size: tuple[int, int], draft_side: float) -> Image.Image:
    """Crop an open image to `box` (left, top, right, bottom) and resize it to `size` (width, height), bilinear.

    Returns RGB; transparent parts become white.
    draft_side: a length in pixels, at most the longer side of the box. A JPEG is decoded at the smallest of 1/1, 1/2,
    1/4 and 1/8 of its size at which this length is still the longer side of `size` or more.
    """
    # Let the JPEG decoder reduce the image, which is faster. On full-size CelebA at 28x28, this changes a value of
    # 0..255 by 0.9 on average. `scale` is the remaining part of its width, 1 for other formats.
    full_width = image.width
    reduced = image.draft(None, tuple(math.ceil(length * max(size) / draft_side) for length in image.size))
    scale = reduced[1][2] / full_width if reduced else 1
    # The box may cut through pixels. Cropping to the whole pixels it touches keeps the filter from reaching further.
    left, top, right, bottom = (edge * scale for edge in box)
    x, y = math.floor(left), math.floor(top)
    image = to_rgb(image, (x, y, math.ceil(right), math.ceil(bottom)))
    return image.resize(size, Image.Resampling.BILINEAR, (left - x, top - y, right - x, bottom - y))
