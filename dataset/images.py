"""Image files of unknown origin: found in folders and zip archives, read in place, opened within limits."""

import contextlib
import math
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dataset import DataError

IMAGE_SUFFIXES = {'.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}
# Pillow knows more formats, some of which run other programs: EPS starts Ghostscript.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
MAX_BYTES = 1 << 27  # of an image file
MAX_PIXELS = 1 << 26  # of an image, 8192x8192: decoding one takes less than 1 GB


class ImageSource:
    """The image files in a zip archive, or in a folder and its subfolders. Raises DataError if `path` is neither."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.archive = None if path.is_dir() else zipfile.ZipFile(path)
        except Exception as error:  # a damaged archive makes zipfile raise nearly anything
            raise DataError(f'{path} is neither a folder nor a readable zip archive: {error}') from None

    def names(self) -> list[str]:
        """The sorted names of the images. Raises OSError if a folder cannot be read."""
        if self.archive:
            return sorted(filter(is_image, self.archive.namelist()))
        # Broken links are listed, and reported later. Named pipes are not: opening one could block forever.
        paths = (path for path in files_below(self.path) if os.path.isfile(path) or not os.path.exists(path))
        return sorted(filter(is_image, (str(path.relative_to(self.path)) for path in paths)))

    def read(self, name: str) -> bytes:
        """The content of one of the files. A name in an archive is only looked up there and never used as a path.

        Raises DataError for more than MAX_BYTES, and nearly any exception for a damaged entry.
        """
        if self.archive and self.archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError('neither stored nor deflated')  # zipfile puts no limit on what others expand to
        with self.archive.open(name) if self.archive else open(self.path / name, 'rb') as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(f'more than {MAX_BYTES} bytes')
        return content


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image and is not hidden, like the copies that macOS puts into zips."""
    path = Path(name)
    hidden = any(part.startswith(('.', '__MACOSX')) and part != '..' for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and not name.endswith('/')  # a folder in a zip


def files_below(folder: Path):
    """Yield the paths of the files in a folder and its subfolders. Does not follow links to folders. Raises OSError."""

    def fail(error):
        raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        yield from (Path(parent, name) for name in names)


@contextlib.contextmanager
def open_image(file):
    """Open an image file, given by path or already open, and turn it upright as its EXIF data asks.

    Raises DataError for an unknown format or more than MAX_PIXELS. A broken image can make Pillow raise nearly any
    exception, here or when the pixels are decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow warns of flaws that do not affect the pixels
        try:
            opened = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            raise DataError('not an image of a known format') from None
        with opened as image:
            if math.prod(image.size) > MAX_PIXELS:  # nothing has been decoded yet
                raise DataError(f'{image.width}x{image.height} is more than {MAX_PIXELS} pixels')
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                ImageOps.exif_transpose(image, in_place=True)
            yield image


def crop_and_resize(image, box, size: tuple[int, int], min_side: float) -> Image.Image:
    """Crop an open image to `box` (left, top, right, bottom) and resize it to `size` (width, height), bilinear.

    Returns 8-bit RGB, whatever the mode of `image`: 16-bit grey is scaled, and transparent parts become white.
    min_side: a length in pixels, at most the longer side of the box. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size,
    which is faster, as long as that length stays no shorter than the longer side of `size`. On full-size CelebA at
    28x28, this changes a value of 0..255 by 0.9 on average.
    """
    full_width = image.width
    reduced = image.draft(None, tuple(math.ceil(length * max(size) / min_side) for length in image.size))
    scale = reduced[1][2] / full_width if reduced else 1
    left, top, right, bottom = (edge * scale for edge in box)
    x, y = math.floor(left), math.floor(top)
    # The box may cut through pixels. Cropping to the whole pixels it touches keeps the filter from reaching further.
    image = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
    if image.mode.startswith('I'):  # 16-bit grey, which Pillow would clip
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
    return image.convert('RGB').resize(size, Image.Resampling.BILINEAR, (left - x, top - y, right - x, bottom - y))
