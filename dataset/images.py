"""Image files of unknown origin, opened within limits and converted to RGB."""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dataset import DataError

# Pillow knows more formats, some of which run other programs: EPS starts Ghostscript.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
MAX_PIXELS = 1 << 26  # of an image, 8192x8192: decoding one takes less than 1 GB


@contextlib.contextmanager
def open_image(file: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image file, turned upright as its EXIF data asks.

    Raises DataError for an unknown format or more than MAX_PIXELS. A broken image can make Pillow raise nearly any
    exception, here or when the pixels are decoded.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter('ignore')  # Pillow warns of flaws that do not affect the pixels
        try:
            image = stack.enter_context(Image.open(file, formats=FORMATS))
        except UnidentifiedImageError:
            raise DataError('not an image of a known format') from None
        if math.prod(image.size) > MAX_PIXELS:  # nothing has been decoded yet
            raise DataError(f'{image.width}x{image.height} is more than {MAX_PIXELS} pixels')
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        yield image


def crop_and_resize(
    image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int], min_side: float
) -> Image.Image:
    """Crop an open image to `box` (left, top, right, bottom) and resize it to `size` (width, height), bilinear, in RGB.

    min_side: a length in pixels, at most a side of the box. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is
    faster, as long as that length stays no shorter than the longer side of `size`. On full-size CelebA at 28x28, this
    changes a value of 0..255 by 0.9 on average.
    """
    full_width = image.width
    reduced = image.draft(None, tuple(math.ceil(length * max(size) / min_side) for length in image.size))
    scale = reduced[1][2] / full_width if reduced else 1
    left, top, right, bottom = (edge * scale for edge in box)
    x, y = math.floor(left), math.floor(top)
    # The box may cut through pixels. Cropping to the whole pixels it touches keeps the filter from reaching further.
    cropped = to_rgb(image.crop((x, y, math.ceil(right), math.ceil(bottom))))
    return cropped.resize(size, Image.Resampling.BILINEAR, (left - x, top - y, right - x, bottom - y))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any image to 8-bit RGB. 16-bit grey is scaled, and transparent parts become white."""
    if image.mode.startswith('I'):  # Pillow would clip instead
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')
