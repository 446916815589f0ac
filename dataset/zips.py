"""Zip archives as other systems write them."""

import io
import struct
import zipfile
from pathlib import Path

from dataset import DataError

# Compression methods that zipfile cannot read, or whose output it cannot limit.
METHODS = {9: 'Deflate64', 12: 'bzip2', 14: 'LZMA', 93: 'Zstandard', 95: 'xz', 98: 'PPMd'}
UTF8 = 0x800  # flag of an entry whose name is UTF-8
ENTRY = b'PK\x01\x02'  # signature of an entry of the directory


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip archive. A damaged one can raise any exception."""
    try:
        return zipfile.ZipFile(path)
    except UnicodeDecodeError:  # one odd name, for which zipfile refuses the archive
        return zipfile.ZipFile(RepairedFile(io.FileIO(path)))


class RepairedFile(io.BufferedReader):
    """The file of an archive, without the flag UTF8 for names that are not UTF-8."""

    def read(self, size=-1) -> bytes:
        data = super().read(size)
        # zipfile reads the directory at once. An image cannot begin with its signature.
        if not data.startswith(ENTRY):
            return data
        directory, start = bytearray(data), 0
        while directory.startswith(ENTRY, start):
            # ENTRY, at 8 flags, at 28 the lengths of name, extra data and comment, which begin at 46.
            lengths = struct.unpack_from('<3H', directory, start + 28)
            try:
                directory[start + 46 : start + 46 + lengths[0]].decode()
            except UnicodeDecodeError:
                directory[start + 9] &= 0xFF ^ UTF8 >> 8
            start += 46 + sum(lengths)
        return bytes(directory)


def entry_name(info: zipfile.ZipInfo) -> str:
    """The name of an entry. Some systems write UTF-8 without the flag, which zipfile decodes as code page 437."""
    if info.flag_bits & UTF8 or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode('cp437').decode()
    except UnicodeError:
        return info.filename


def open_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo):
    """Open an entry to read bytes. Damaged ones can raise any exception.

    Raises DataError if it is encrypted, or compressed by a method whose output zipfile cannot limit.
    """
    if info.flag_bits & 1:
        raise DataError('encrypted: unpack the archive with its password')
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = METHODS.get(info.compress_type, f'method {info.compress_type}')
        raise DataError(f'compressed by {method}, neither stored nor deflated: unpack the archive')
    return archive.open(info)
