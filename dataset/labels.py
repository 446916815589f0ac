"""Labels of images: attributes, from a table (CelebA format or CSV) or from folder names, and people, from a table."""

import csv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dataset import DataError
from dataset.source import Source, is_image

CELEB_A_TABLE = 'list_attr_celeba.txt'  # the official table of 40 attributes
TABLES = (CELEB_A_TABLE, 'list_attr_celeba.zip', 'list_attr_celeba.csv', 'attributes.csv')  # found next to the images
IDENTITIES = 'identity_CelebA.txt'  # the official identity table
VALUES = {'1': 1, 'true': 1, '-1': -1, '0': -1, 'false': -1}
MAX_COMBINATIONS = 500  # rows of attributes that a run keeps


def find_table(path: Path) -> Path | None:
    """The attribute table in the folder of images, or next to the folder or archive of them; None if there is none."""
    # A table in the folder is more likely to be about its images than one next to it.
    folders = (path, path.parent) if path.is_dir() else (path.parent,)
    return next((table for folder in folders for name in TABLES if (table := folder / name).exists()), None)


def load_attributes(source: Source, attributes: list[str], table: Path | None = None) -> dict[str, list[int]]:
    """The values of `attributes`, 1 or -1, by the name of the image file.

    They come from `table`. If it is None, they come from the folders in `source` if each attribute is the name of one,
    and otherwise from the table that `find_table` finds. Raises DataError, OSError.
    """
    # An image has the attributes that the folders above it are named after.
    if table is None:
        folders = {part for name in source.names for part in Path(name).parts[:-1]}
        missing = [attribute for attribute in attributes if attribute not in folders]
        if not missing:
            return {name: [1 if each in Path(name).parts[:-1] else -1 for each in attributes] for name in source.names}
        table = find_table(source.path)
    if table is None:
        raise DataError(
            f'no folder in {source.path} is named {", ".join(missing)}, and no attribute table '
            f'({", ".join(TABLES)}) is next to it: put one there, or name it with --attribute-table'
        )
    return read_attributes(table, attributes)


def read_attributes(table: Path, attributes: list[str]) -> dict[str, list[int]]:
    """The values of `attributes`, 1 or -1, by the name of the image file. Raises DataError, OSError."""
    # The first row names the columns, of which the first one holds the names of the files.
    rows = read_rows(table)
    _, header = next(rows, (1, []))
    columns = [name.strip() for name in header[1:]]
    if not columns or any('\ufffd' in name or not name.isprintable() for name in columns):
        raise DataError(f'{table} is not an attribute table in UTF-8')
    if unknown := [attribute for attribute in attributes if attribute not in columns]:
        raise DataError(f'{table} has no attribute {", ".join(unknown)}: it has {", ".join(columns)}')
    # Each of the other rows has a value for every column.
    wanted = [columns.index(attribute) for attribute in attributes]
    values = {}
    for number, (name, *cells) in rows:
        if len(cells) != len(columns):
            raise DataError(f'{table}, line {number}: {len(cells)} values for {len(columns)} attributes')
        try:
            values[name] = [VALUES[cells[column].strip().lower()] for column in wanted]
        except KeyError as error:
            raise DataError(f'{table}, line {number}: {error} is none of {", ".join(VALUES)}') from None
    return values


def load_people(table: Path, names: list[str]) -> list[str]:
    """Who is on each of the images `names`; a row of the table is like "000001.jpg 2880". Raises DataError, OSError."""
    try:
        people = {row[0]: row[1] for _, row in read_rows(table) if len(row) == 2}
        return [people[Path(name).name] for name in names]
    except FileNotFoundError:
        problem, remedy = 'is missing', 'put it there'
    except KeyError as error:
        problem, remedy = f'has no identity for {error}', 'add it'
    raise DataError(f'{table} {problem}, so people cannot be held out: {remedy}, or use --hold-out images')


def read_rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a table that are not empty, with their line numbers. Raises DataError, OSError.

    table: text with values between spaces, like CelebA's tables, a CSV file, or a zip archive of either.
    """
    # CelebA's table of attributes starts with the number of images.
    lines = read_text(table).splitlines()
    start = 1 if lines and lines[0].strip().isdecimal() else 0
    is_csv = ',' in ''.join(lines[start : start + 1])
    try:
        for number, row in enumerate(csv.reader(lines[start:]) if is_csv else map(str.split, lines[start:]), start + 1):
            # Its header, unlike a CSV header, has no name for the column of files.
            is_header = number == start + 1 and not is_image(''.join(row[:1]))
            if row:
                yield number, ['', *row] if is_header and not is_csv else row
    except csv.Error as error:
        raise DataError(f'{table} is malformed: {error}') from None


def read_text(table: Path) -> str:
    """The text of a table, or of the first one in a zip archive."""
    # Recognised by its first bytes: the downloaded table and its zip archive may have any name.
    content = table.read_bytes()
    if content.startswith(b'PK'):
        try:
            with zipfile.ZipFile(table) as archive:
                name = next(name for name in archive.namelist() if name.endswith(('.txt', '.csv')))
                content = archive.read(name)
        except Exception:  # a damaged archive can raise any exception
            raise DataError(f'{table} is not a readable zip archive of a table') from None
    return content.decode('utf-8-sig', 'replace')


def look_up(values: dict[str, list[int]], names: list[str]) -> np.ndarray:
    """The values of the images `names`, int8 (N, attributes). Raises DataError if one is missing."""
    # A table has the names with their folders, or only the names of the files, as in CelebA's.
    found = [values.get(name) or values.get(Path(name).name) for name in names]
    if missing := [name for name, row in zip(names, found, strict=True) if row is None]:
        raise DataError(f'the attribute table lacks {len(missing)} of {len(names)} images, first {missing[0]!r}')
    return np.array(found, np.int8)


def combinations(conditions: np.ndarray) -> tuple[str, ...]:
    """How attributes occur together: evenly spaced rows of (N, attributes), each as text such as '101'."""
    rows = np.linspace(0, len(conditions) - 1, min(len(conditions), MAX_COMBINATIONS)).astype(int)
    return tuple(''.join('1' if value > 0 else '0' for value in row) for row in conditions[rows])
