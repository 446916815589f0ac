"""Sources of images: zip archives and folders, listed once and read in place.

folder or archive ── all files ──┬── images of the data set, by suffix or by their first bytes ──> `images`
                                 └── all others, with what they are ─────────────────────────────> `others`
"""

import hashlib
import os
import re
import stat
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from dataset import DataError
from dataset.zips import entry_name, open_entry, open_zip

IMAGE_SUFFIXES = {
    '.apng', '.bmp', '.dib', '.gif', '.jfif', '.jpe', '.jpeg', '.jpg', '.pbm', '.pfm', '.pgm', '.pjp', '.pjpeg',
    '.png', '.pnm', '.ppm', '.tif', '.tiff', '.webp',
}  # fmt: skip
# First bytes of images; DOTALL, so that a dot is any byte.
IMAGE = re.compile(
    rb'\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0'
    rb'|P[1-6Ff]\s+(#|\d)|II[*+]\0|MM\0[*+]',
    re.DOTALL,
)
# Suffixes of camera raw files, which begin like TIFF files that hold only a thumbnail.
RAW_SUFFIXES = {
    '.3fr', '.arw', '.cr2', '.dcr', '.dng', '.erf', '.iiq', '.k25', '.kdc', '.mef', '.mos', '.nef', '.nrw', '.pef',
    '.raw', '.rwl', '.sr2', '.srf', '.srw',
}  # fmt: skip
# Suffixes of images that must be converted.
CONVERTED_SUFFIXES = RAW_SUFFIXES | {
    '.avif', '.avifs', '.cr3', '.heic', '.heics', '.heif', '.hif', '.j2k', '.jp2', '.jpx', '.jxl', '.orf', '.psd',
    '.raf', '.rw2', '.svg', '.tga',
}  # fmt: skip
CONVERT = 'convert to JPEG or PNG, for example with ImageMagick: mogrify -format jpg FILES'
# First bytes of a file that is neither a folder nor a zip archive, what it is, and the remedy.
UNPACK = 'unpack it and pass the folder'
OTHER_FILES = (
    (IMAGE, 'a single image', 'pass a folder or zip archive of images'),
    (re.compile(rb'....ftyp(hei|hev|mif|msf|avi)', re.DOTALL), 'a single HEIC or AVIF image', CONVERT),
    (re.compile(rb'7z\xbc\xaf'), 'a 7z archive', UNPACK),
    (re.compile(rb'Rar!'), 'a RAR archive', UNPACK),
    (re.compile(rb'\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd'), 'a compressed file, perhaps a tar archive', UNPACK),
    (re.compile(rb'.{257}ustar', re.DOTALL), 'a tar archive', UNPACK),
    (re.compile(rb'(\xef\xbb\xbf)?\s*<(!doctype html|html|head)', re.I), 'an HTML page', 'download the archive again'),
    (re.compile(rb'\Z'), 'an empty file', 'download or copy it again'),
)
ARCHIVE_SUFFIXES = {'.zip', '.tar', '.tgz', '.gz', '.bz2', '.xz', '.7z', '.rar'}
# Folders of operating systems and storage devices, lower case. Hidden ones are ignored, too.
SYSTEM_FOLDERS = {
    '@eadir', '@tmp', '@recycle', '@recently-snapshot', '#recycle', '#snapshot', '~snapshot',
    '$recycle.bin', 'recycler', 'recycled', 'lost+found', 'found.000', 'system volume information',
    'network trash folder', 'temporary items',
}  # fmt: skip
# Files that mark a folder as a run directory, or as results of `generate.py` and `evaluate.py`.
RESULTS = {'run.json', 'generator.json', 'latents.npy', 'evaluation.json'}
# What is left out in addition to files, which are named by their suffixes.
LINK, DATA_DIR, RESULT = 'link to a folder', '--data-dir', 'folder of results'
MAX_KINDS = 10  # kinds of left-out files that are named
MAX_BYTES = 1 << 27  # size limit of an image file
HEAD_BYTES = 32  # bytes that are read of a file without a known suffix


class File(NamedTuple):
    """A file of a source.

    name: its path in the source, with '/' between folders and composed letters (NFC). location: its path below the
    folder, or the number of the entry in the archive. status: see `status_of`.
    """

    name: str
    location: Any
    status: tuple | None


class Source:
    """The image files in a zip archive, or in a folder and its subfolders.

    They are listed once, when first needed, so images and fingerprint agree even if the folder changes meanwhile.
    skip: folders below `path` that are no part of it, such as the cache.
    All methods raise DataError if `path` is neither, and OSError if it cannot be read.
    """

    def __init__(self, path: str | Path, skip: Iterable[str | Path] = ()):
        self.path = Path(path)
        self.skip = {os.path.realpath(folder) for folder in skip}
        self.skipped: dict[str, str] = {}  # folders that are no part of it, and what they are, by name

    @cached_property
    def is_folder(self) -> bool:
        # Unlike is_dir(), stat() raises an error that names a missing file or a loop of links.
        is_folder = stat.S_ISDIR(self.path.stat().st_mode)
        if is_folder and self.real_path.parent == self.real_path:
            raise DataError(f'{self.path} is the root of the file system: pass the folder of the images')
        return is_folder

    @cached_property
    def real_path(self) -> Path:
        """The path without links and '..', the same for all spellings."""
        return Path(os.path.realpath(self.path))  # unlike resolve(), it raises no error for a loop of links

    @cached_property
    def archive(self) -> zipfile.ZipFile:
        try:
            return open_zip(self.path)
        except Exception as error:  # a damaged archive can raise any exception
            with open(self.path, 'rb') as file:
                head = file.read(512)
            what = (f'it is {what}: {remedy}' for pattern, what, remedy in OTHER_FILES if pattern.match(head))
            reason = next(what, str(error))
            raise DataError(f'{self.path} is neither a folder nor a readable zip archive: {reason}') from None

    @cached_property
    def status(self) -> tuple | None:
        """The status of the archive."""
        return status_of(self.path)

    @cached_property
    def files(self) -> list[File]:
        """All files, sorted, except hidden ones and files in folders that are no part of the data set."""
        if self.is_folder:
            return sorted(self.list_folder(), key=lambda file: file.location)
        # The order of the images in earlier versions, which resumed runs need.
        entries = self.archive.infolist()
        return sorted(self.list_archive(), key=lambda file: entries[file.location].filename)

    def list_folder(self) -> Iterator[File]:
        """Yield the files of the folder. Links to folders are not followed."""
        for folder, folders, names in os.walk(self.path, onerror=fail):
            below = os.path.relpath(folder, self.path)
            below = '' if below == '.' else below
            if below and RESULTS.intersection(names):
                self.skipped[common_name(below)] = RESULT
                folders.clear()
                continue

            # Keep the folders that belong to the data set: the walk visits only them.
            for name in list(folders):
                path = os.path.join(below, name)
                reason = why_skipped(name)
                if os.path.islink(os.path.join(folder, name)):
                    reason = LINK
                elif os.path.join(self.real_path, path) in self.skip:
                    reason = DATA_DIR
                if reason is not None:
                    folders.remove(name)
                if reason:
                    self.skipped[common_name(path)] = reason

            for name in names:
                path = os.path.join(below, name)
                status = status_of(os.path.join(folder, name))
                # Named pipes are left out: opening one could block forever.
                if status is not None and why_skipped(name) is None:
                    yield File(common_name(path), path, status)

    def list_archive(self) -> Iterator[File]:
        """Yield the files of the archive."""
        names = [common_name(entry_name(info)) for info in self.archive.infolist()]
        results = {folder for folder, _, name in (name.rpartition('/') for name in names) if name in RESULTS}

        @cache
        def is_skipped(folder: str) -> bool:
            """Whether a folder, or one above it, is no part of the data set. Notes the outermost one."""
            above, _, name = folder.rpartition('/')
            if not folder or is_skipped(above):
                return bool(folder)
            reason = RESULT if folder in results else why_skipped(name)
            if reason:
                self.skipped[folder] = reason
            return reason is not None

        for number, path in enumerate(names):
            folder, _, name = path.rpartition('/')
            # The name of a folder ends with '/'.
            if name and why_skipped(name) is None and not is_skipped(folder):
                yield File(path, number, self.status)

    @cached_property
    def images(self) -> list[File]:
        """The sorted images."""
        return [file for file in self.files if self.is_image(file)]

    @cached_property
    def names(self) -> list[str]:
        """The names of the images."""
        return [file.name for file in self.images]

    @cached_property
    def others(self) -> dict[str, str]:
        """What is left out: the suffix, or the kind, of each file and folder that is no image, by name."""
        images = set(self.images)
        files = [file.name for file in self.files if file not in images]
        return {name: suffix_of(name) or 'without a suffix' for name in files} | self.skipped

    def is_image(self, file: File) -> bool:
        """Whether a file has the suffix of an image, or begins like one under any other suffix."""
        suffix = suffix_of(file.name)
        if suffix in IMAGE_SUFFIXES:
            return True
        try:
            with self.open(file) as opened:
                head = opened.read(HEAD_BYTES)
        except Exception:  # a damaged archive can raise any exception
            return False
        return bool(IMAGE.match(head)) and not (suffix in RAW_SUFFIXES and head[:2] in (b'II', b'MM'))

    def fingerprint(self, *made_with) -> str:
        """A hash that changes with the archive, or any image of the folder, and with `made_with`."""
        # Cached arrays are named after this hash. With any other input, all of them would be made again.
        files: object = self.status
        if self.is_folder:
            paths = [os.path.join(self.real_path, file.location) for file in self.images]
            links = [os.path.realpath(path) if os.path.islink(path) else '' for path in paths]
            files = [(file.location, link, file.status) for file, link in zip(self.images, links, strict=True)]
        made_from = (str(self.real_path), files, *made_with)
        return hashlib.blake2s(repr(made_from).encode(), digest_size=8).hexdigest()

    def read(self, file: File) -> bytes:
        """The content of a file. Damaged ones can raise any exception.

        Raises DataError for more than MAX_BYTES, and ChangedError if it is no longer the file that was listed.
        """
        try:
            with self.open(file) as opened:
                content = opened.read(MAX_BYTES + 1)
        finally:
            path = self.path / file.location if isinstance(file.location, str) else self.path
            if status_of(path) != file.status:
                raise ChangedError(f'{path} has changed since it was listed: run the command again after the changes')
        if len(content) > MAX_BYTES:
            raise DataError(f'more than {MAX_BYTES} bytes')
        return content

    def open(self, file: File):
        """Open a file to read bytes."""
        if isinstance(file.location, str):
            return open(self.path / file.location, 'rb')
        # A name in an archive is never used as a path.
        return open_entry(self.archive, self.archive.infolist()[file.location])

    def check_images(self) -> None:
        """Raise DataError, with the likely reason, if there are no images."""
        if self.images:
            return
        message = f'{self.path} contains no images (JPEG, PNG, WebP, TIFF, BMP, GIF, PNM)'
        if self.others:
            message += f'; left out: {counted(self.others.values())}'
        for name, kind in self.others.items():
            if kind in ARCHIVE_SUFFIXES and self.is_folder:
                raise DataError(f'{message}. To use the archive: --data {self.path / name}')
            if kind in ARCHIVE_SUFFIXES:
                raise DataError(f'{message}. Unpack {name}, which is an archive in an archive')
            if kind in (LINK, DATA_DIR):
                raise DataError(f'{message}. To use the {kind}: --data {self.path / name}')
        raise DataError(message + advice(self.others.values()))


class ChangedError(DataError):
    """A file changed while the source was being read."""


def common_name(name: str) -> str:
    """A name as names are compared: composed letters (NFC), '/' between folders, no './' or '/' at the start."""
    return re.sub(r'^(\.?/)+', '', unicodedata.normalize('NFC', name).replace('\\', '/'))


def why_skipped(name: str) -> str | None:
    """Why a file or folder is no part of a data set: '' for hidden ones, None if it may be a part."""
    if name.startswith(('.', '__MACOSX')) and name not in ('.', '..'):
        return ''
    return 'system folder' if name.lower() in SYSTEM_FOLDERS else None


def suffix_of(name: str) -> str:
    """The suffix of a file, lower case, with its dot; '' if there is none."""
    return os.path.splitext(name)[1].lower()


def status_of(path: str | Path) -> tuple | None:
    """Size, and times of the last changes of content and of status.

    () for a missing file, such as a broken link; None for a named pipe and the like.
    """
    try:
        status = os.stat(path)
    except OSError:
        return ()
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def counted(kinds: Iterable[str]) -> str:
    """How often each kind occurs: '.heic (3), .txt (1)'."""
    counts = Counter(kind if kind.isprintable() else repr(kind) for kind in kinds)
    named = sorted(counts.most_common(MAX_KINDS))
    more = counts.total() - sum(count for _, count in named)
    return ', '.join([f'{kind} ({count})' for kind, count in named] + [f'others ({more})'] * bool(more))


def advice(kinds: Iterable[str]) -> str:
    """How to use the images among these kinds of files; '' if there are none."""
    suffixes = sorted(CONVERTED_SUFFIXES.intersection(kinds))
    return f'. To use {", ".join(suffixes)}: {CONVERT}' if suffixes else ''


def fail(error: OSError):
    raise error
