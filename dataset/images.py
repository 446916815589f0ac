"""Image files of unknown origin: opened within limits, cropped and resized."""

import contextlib
import math
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dataset import DataError

# Pillow knows more formats, some of which run other programs: EPS starts Ghostscript.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
MAX_PIXELS = 1 << 26  # size limit of an image, 8192x8192: decoding one takes less than 1 GB


@contextlib.contextmanager
def open_image(file):
    """Open an image file (a path or an open file) and turn it upright according to its EXIF data.

    Raises DataError for an unknown format or too many pixels. Broken images can raise any exception, even later.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow warns of flaws that do not affect the pixels
        try:
            opened = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            raise DataError('not an image of a known format') from None
        with opened as image:
            # Only the header has been read so far: check the size before anything is decoded.
            if math.prod(image.size) > MAX_PIXELS:
                raise DataError(f'{image.width}x{image.height} is more than {MAX_PIXELS} pixels')
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                ImageOps.exif_transpose(image, in_place=True)
            yield image


def crop_and_resize(image, box, size: tuple[int, int], draft_side: float) -> Image.Image:
    """Crop an open image to `box` (left, top, right, bottom) and resize it to `size` (width, height), bilinear.

    Returns 8-bit RGB for every mode of `image`: 16-bit grey is scaled, and transparent parts become white.
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
    image = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
    # Convert to 8-bit RGB.
    # Convert to 8-bit RGB, on white.
    if image.mode.startswith('I'):  # 16-bit grey, which Pillow would clip
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
    return image.convert('RGB').resize(size, Image.Resampling.BILINEAR, (left - x, top - y, right - x, bottom - y))
