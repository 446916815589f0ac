"""Sources of images: zip archives and folders, listed once and read in place."""

import hashlib
import os
import stat
import zipfile
from functools import cached_property
from pathlib import Path

from dataset import DataError

IMAGE_SUFFIXES = {'.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}
MAX_BYTES = 1 << 27  # size limit of an image file
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # compression methods whose output zipfile can limit


class Source:
    """The image files in a zip archive, or in a folder and its subfolders.

    They are listed once, when first needed, so names and fingerprint agree even if the folder changes meanwhile.
    All methods raise DataError if `path` is neither, and OSError if it cannot be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @cached_property
    def is_folder(self) -> bool:
        # Unlike is_dir(), stat() raises an error that names a missing file or a loop of links.
        return stat.S_ISDIR(self.path.stat().st_mode)

    @cached_property
    def archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except Exception as error:  # a damaged archive can raise any exception
            raise DataError(f'{self.path} is neither a folder nor a readable zip archive: {error}') from None

    @cached_property
    def files(self) -> list[tuple[Path, os.stat_result | None]]:
        """The sorted files of the folder with their status, or only the archive. Links to folders are not followed."""
        walk = os.walk(self.path, onerror=fail) if self.is_folder else ()
        files = []
        for path in sorted(Path(folder, name) for folder, _, names in walk for name in names) or [self.path]:
            try:
                status = path.stat()
            except OSError:  # a broken link, which is reported when it is read
                status = None
            # Named pipes are left out: opening one could block forever.
            if status is None or stat.S_ISREG(status.st_mode):
                files.append((path, status))
        return files

    @cached_property
    def names(self) -> list[str]:
        """The sorted names of the images."""
        if self.is_folder:
            return sorted(filter(is_image, (str(path.relative_to(self.path)) for path, _ in self.files)))
        return sorted(filter(is_image, self.archive.namelist()))

    def fingerprint(self, *made_with) -> str:
        """A hash that changes with the archive, or any file of the folder, and with `made_with`."""
        # Prepared arrays are named after this hash. With any other input, all of them would be made again.
        stats = [(str(path), status.st_size, status.st_mtime_ns) for path, status in self.files if status]
        made_from = (str(self.path.resolve()), stats, *made_with)
        return hashlib.blake2s(repr(made_from).encode(), digest_size=8).hexdigest()

    def read(self, name: str) -> bytes:
        """The content of an image file. Damaged ones can raise any exception, more than MAX_BYTES raise DataError."""
        # A name in an archive is only looked up there and never used as a path.
        # The size that an entry claims may be wrong, so reading stops at the limit, which bz2 and lzma would exceed.
        if not self.is_folder and self.archive.getinfo(name).compress_type not in BOUNDED:
            raise DataError('neither stored nor deflated')
        with open(self.path / name, 'rb') if self.is_folder else self.archive.open(name) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(f'more than {MAX_BYTES} bytes')
        return content


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image and is not hidden, like the copies that macOS puts into zips."""
    path = Path(name)
    hidden = any(part.startswith(('.', '__MACOSX')) and part != '..' for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and not name.endswith('/')  # a folder in a zip


def fail(error: OSError):
    raise error
