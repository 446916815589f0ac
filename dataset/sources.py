"""Folders and zip archives of images, read in place."""

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NoReturn

from dataset import DataError

IMAGE_SUFFIXES = {'.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}
MAX_BYTES = 1 << 27  # of an image file


def image_names(source: Path) -> list[str]:
    """The sorted names of the image files in a zip archive, or in a folder and its subfolders.

    Raises DataError if `source` is neither, and OSError if it cannot be read.
    """
    if source.is_dir():
        # Broken links are listed, and reported later. Named pipes are not: opening one could block forever.
        paths = (path for path in files_below(source) if os.path.isfile(path) or not os.path.exists(path))
        names = [str(path.relative_to(source)) for path in paths]
    else:
        with open_archive(source) as archive:
            names = archive.namelist()
    return sorted(filter(is_image, names))


def open_reader(source: Path) -> Callable[[str], bytes]:
    """Return a function that reads one of the files that `image_names` lists.

    That function raises DataError for more than MAX_BYTES, and nearly any exception for a damaged entry.
    Names in an archive are only looked up there and never used as paths.
    """
    if source.is_dir():

        def open_file(name: str) -> IO[bytes]:
            return open(source / name, 'rb')
    else:
        archive = open_archive(source)

        def open_file(name: str) -> IO[bytes]:
            if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError('neither stored nor deflated')  # zipfile puts no limit on what others expand to
            return archive.open(name)

    def read(name: str) -> bytes:
        with open_file(name) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(f'more than {MAX_BYTES} bytes')
        return content

    return read


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip archive. Raises DataError if it is damaged or no zip archive at all."""
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged archive makes zipfile raise nearly anything
        raise DataError(f'{path} is neither a folder nor a readable zip archive: {error}') from None


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image and is not hidden, like the copies that macOS puts into zips."""
    path = Path(name)
    hidden = any(part.startswith(('.', '__MACOSX')) and part != '..' for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and not name.endswith('/')  # a folder in a zip


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders. Does not follow links to folders. Raises OSError."""

    def fail(error: OSError) -> NoReturn:
        raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        yield from (Path(parent, name) for name in names)
