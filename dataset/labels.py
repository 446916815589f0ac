"""What is to be seen on each image: attributes from a table such as CelebA's, or from the names of folders."""

import csv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dataset import DataError
from dataset.images import ImageSource

CELEB_A_TABLE = 'list_attr_celeba.txt'  # the official table of 40 attributes
TABLES = (CELEB_A_TABLE, 'list_attr_celeba.zip', 'list_attr_celeba.csv', 'attributes.csv')  # found beside the images
VALUES = {'1': 1, 'true': 1, '-1': -1, '0': -1, 'false': -1}
MAX_COMBINATIONS = 500


def find_table(source: Path) -> Path | None:
    """The table in the folder of images, or beside the folder or archive of them; None if there is none."""
    folders = (source, source.parent) if source.is_dir() else (source.parent,)
    return next((path for folder in folders for name in TABLES if (path := folder / name).exists()), None)


def load_attributes(source: Path, attributes: list[str], table: Path | None = None) -> dict[str, list[int]]:
    """The values of `attributes`, 1 or -1, by the name of the image file.

    They come from `table`. If it is None, they come from the folders in `source` (a folder or an archive) when each
    attribute is the name of one, and otherwise from the table that `find_table` finds.
    Raises DataError if there is neither or the table is malformed, and OSError if something cannot be read.
    """
    if table is None:
        source.stat()  # raises an error that names a missing file
        names = ImageSource(source).names()
        folders = {part for name in names for part in Path(name).parts[:-1]}
        missing = [attribute for attribute in attributes if attribute not in folders]
        if not missing:
            return {name: [1 if each in Path(name).parts[:-1] else -1 for each in attributes] for name in names}
        table = find_table(source)
        if table is None:
            raise DataError(
                f'no folder in {source} is named {", ".join(missing)}, and no table of attributes '
                f'({", ".join(TABLES)}) is beside it: put one there, or name it with --attribute-table'
            )
    return read_table(table, attributes)


def read_table(table: Path, attributes: list[str]) -> dict[str, list[int]]:
    """The values of `attributes`, 1 or -1, by the name of the image file.

    table: text like CelebA's, with a line of names, and then lines like "000001.jpg -1 1"; a CSV file, whose first line
    also names the column of the files; or a zip archive of either. A number in the first line is skipped.
    Raises DataError if the table is malformed or lacks an attribute, and OSError if it cannot be read.
    """
    rows = read_rows(table)
    _, (_, *columns) = next(rows, (1, ['']))
    columns = [name.strip() for name in columns]
    if not columns or any('\ufffd' in name or not name.isprintable() for name in columns):
        raise DataError(f'{table} is not a table of attributes in UTF-8')
    if unknown := [attribute for attribute in attributes if attribute not in columns]:
        raise DataError(f'{table} has no attribute {", ".join(unknown)}: it has {", ".join(columns)}')
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


def read_rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a table with their numbers, first that of the names. The first cell is that of the file."""
    lines = read_text(table).splitlines()
    start = 1 if lines and lines[0].strip().isdecimal() else 0
    if ',' in ''.join(lines[start : start + 1]):
        rows: Iterator[list[str]] = csv.reader(lines[start:])
    else:
        rows = (['', *line.split()] if number == 0 else line.split() for number, line in enumerate(lines[start:]))
    try:
        yield from ((number, row) for number, row in enumerate(rows, start + 1) if row)
    except csv.Error as error:
        raise DataError(f'{table} is malformed: {error}') from None


def read_text(table: Path) -> str:
    """The text of a table, or of the first one in a zip archive."""
    content = table.read_bytes()
    if content.startswith(b'PK'):
        try:
            with zipfile.ZipFile(table) as archive:
                name = next(name for name in archive.namelist() if name.endswith(('.txt', '.csv')))
                content = archive.read(name)
        except Exception:  # a damaged archive makes zipfile raise nearly anything
            raise DataError(f'{table} is not a readable zip archive of a table of attributes') from None
    return content.decode('utf-8-sig', 'replace')


def look_up(values: dict[str, list[int]], names: list[str]) -> np.ndarray:
    """The values of the images `names`, int8 (N, attributes), found by their whole names or those of the files alone.

    Raises DataError if one is missing.
    """
    found = [values.get(name) or values.get(Path(name).name) for name in names]
    if missing := [name for name, row in zip(names, found, strict=True) if row is None]:
        raise DataError(f'the table of attributes lacks {len(missing)} of {len(names)} images, first {missing[0]!r}')
    return np.array(found, np.int8)


def combinations(conditions: np.ndarray) -> tuple[str, ...]:
    """How attributes occur together: evenly spaced rows of (N, attributes), each as text such as '101'."""
    rows = np.linspace(0, len(conditions) - 1, min(len(conditions), MAX_COMBINATIONS)).astype(int)
    return tuple(''.join('1' if value > 0 else '0' for value in row) for row in conditions[rows])
