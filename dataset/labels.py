"""Labels of images: attributes, from a table (CelebA format or CSV) or from folder names, and people, from a table."""

import csv
import io
import itertools
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset import DataError
from dataset.source import Source, common_name, why_skipped

CELEB_A_TABLE = 'list_attr_celeba.txt'  # the official table of 40 attributes
TABLES = (CELEB_A_TABLE, 'list_attr_celeba.zip', 'list_attr_celeba.csv', 'attributes.csv')
IDENTITIES = ('identity_CelebA.txt', 'identity_CelebA.zip', 'identity_CelebA.csv')  # the first is the official one
TEXT_SUFFIXES = ('.txt', '.csv', '.tsv')
DELIMITERS = ',;\t'  # in a table without any, values are separated by spaces
VALUES = {'1': 1, 'true': 1, '-1': -1, '0': -1, 'false': -1}
MAX_COMBINATIONS = 500  # rows of attributes that a run keeps


class Table(NamedTuple):
    """A file with a row for each image.

    name: for messages. content: text, or a zip archive with it. names: names of the table in such an archive.
    """

    name: str
    content: bytes
    names: tuple[str, ...]


class Labels(NamedTuple):
    """A label of each image. rows: by the name of the image, see `look_up`. origin: where they come from.

    from_folders: whether images of the same name have the same label.
    """

    origin: str
    rows: dict[str, Any]
    from_folders: bool = False


def open_table(path: Path, names: tuple[str, ...] = TABLES) -> Table:
    """Read a table. names: see `Table`. Raises OSError."""
    return Table(str(path), path.read_bytes(), names)


def find_table(source: Source, names: tuple[str, ...]) -> Table | None:
    """The first table with one of `names` in the source, or next to it; None if there is none. Raises DataError."""
    # A table in the folder or archive is more likely to be about its images than one next to it.
    folders = [source.path.absolute().parent]
    if source.path.is_dir():
        folders.insert(0, source.path)
    elif source.path.exists():
        inside = [file for file in source.files if file.name.rpartition('/')[2] in names]
        order = [(file.name.count('/'), names.index(file.name.rpartition('/')[2])) for file in inside]
        if inside:
            file = inside[order.index(min(order))]
            if order.count(min(order)) > 1:
                several = ', '.join(each.name for each in inside)
                raise DataError(f'{source.path} contains several tables, {several}: remove all but one')
            return Table(f'{source.path}/{file.name}', source.read(file), names)
    found = (path for folder in folders for name in names if (path := folder / name).exists())
    return next((open_table(path, names) for path in found), None)


def load_attributes(source: Source, attributes: list[str], table: Table | None = None) -> Labels:
    """The values of `attributes`, 1 or -1, from `table`. Raises DataError, OSError.

    If it is None, they come from the table that `find_table` finds if it has them, and otherwise from the folders: an
    image has the attributes that the folders above it are named after.
    """
    # The table. If it lacks attributes, the folders must have all of them.
    found = table or find_table(source, TABLES)
    folders = set() if table else {part for name in source.names for part in name.split('/')[:-1]}
    if found and (set(attributes) <= set(read_columns(found)) or not set(attributes) <= folders):
        return read_attributes(found, attributes)

    # The folders.
    if missing := [attribute for attribute in attributes if attribute not in folders]:
        raise DataError(
            f'no folder in {source.path} is named {", ".join(missing)}, and no attribute table '
            f'({", ".join(TABLES)}) is in it or next to it: put one there, or name it with --attribute-table'
        )
    above = {name: name.split('/')[:-1] for name in source.names}
    rows = {name: [1 if each in parts else -1 for each in attributes] for name, parts in above.items()}
    return Labels(f'the folders of {source.path}', rows, from_folders=True)


def read_columns(table: Table) -> list[str]:
    """The names of the attributes in a table. Raises DataError."""
    _, header = next(read_rows(table), (1, []))
    if not header[1:] or any('\ufffd' in name or not name.isprintable() for name in header):
        raise DataError(f'{table.name} is not an attribute table in UTF-8')
    return header[1:]


def read_attributes(table: Table, attributes: list[str]) -> Labels:
    """The values of `attributes`, 1 or -1, in a table. Raises DataError."""
    columns = read_columns(table)
    if unknown := [attribute for attribute in attributes if attribute not in columns]:
        raise DataError(f'{table.name} has no attribute {", ".join(unknown)}: it has {", ".join(columns)}')
    if twice := [attribute for attribute in attributes if columns.count(attribute) > 1]:
        raise DataError(f'{table.name} has several columns {", ".join(twice)}: rename or remove all but one')

    # Each row after the header has a value for every column.
    wanted = [columns.index(attribute) for attribute in attributes]

    def labelled():
        for number, (name, *cells) in itertools.islice(read_rows(table), 1, None):
            if len(cells) != len(columns):
                raise DataError(f'{table.name}, line {number}: {len(cells)} values for {len(columns)} attributes')
            try:
                yield number, name, [VALUES[cells[column].lower()] for column in wanted]
            except KeyError as error:
                raise DataError(f'{table.name}, line {number}: {error} is none of {", ".join(VALUES)}') from None

    return collect(table, labelled())


def load_people(source: Source) -> Labels:
    """Who is on each image, from a table with rows like "000001.jpg 2880", of which the first may be a header.

    Raises DataError, OSError.
    """
    table = find_table(source, IDENTITIES)
    if not table:
        path = source.path.absolute().parent / IDENTITIES[0]
        raise DataError(f'{path} is missing, so people cannot be held out: put it there, or use --hold-out images')

    def labelled():
        for number, row in read_rows(table):
            if len(row) != 2:
                raise DataError(f'{table.name}, line {number}: {len(row)} values instead of an image and a person')
            yield number, *row

    return collect(table, labelled())


def collect(table: Table, labelled: Iterable[tuple[int, str, Any]]) -> Labels:
    """The labels in the rows of a table: number of the line, name, label. Raises DataError if rows contradict."""
    rows: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for number, text, label in labelled:
        name = common_name(text)
        if rows.setdefault(name, label) != label:
            raise DataError(f'{table.name}, line {number}: {name!r} contradicts line {lines[name]}: remove one of them')
        lines.setdefault(name, number)
    return Labels(table.name, rows)


def read_rows(table: Table) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a table that are not empty, with their line numbers. Raises DataError.

    Values are separated by commas, semicolons, tabs or, as in CelebA's tables, spaces.
    """
    # CelebA's table of attributes starts with the number of images, a table of Excel perhaps with its delimiter.
    lines = read_text(table).splitlines()
    filled = [number for number, line in enumerate(lines) if line.strip()]
    if filled and re.fullmatch(r'\d+|sep=.?', lines[filled[0]].strip()):
        del filled[0]
    start = filled[0] if filled else len(lines)

    # The delimiter is the one that is most frequent in the first row, or also in the second one.
    first, second = [*(lines[number] for number in filled[:2]), '', ''][:2]
    delimiter = max(DELIMITERS, key=lambda each: (first.count(each), second.count(each)))
    if delimiter in first:
        reader = csv.reader(lines[start:], delimiter=delimiter)
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield start + reader.line_num, [cell.strip() for cell in row]
        except csv.Error as error:
            raise DataError(f'{table.name} is malformed: {error}') from None
        return

    # The header of CelebA's table has no name for the column of files.
    if len(first.split()) < max(2, len(second.split())):
        lines[start : start + 1] = [f'file {each}' for each in lines[start : start + 1]]
    yield from ((number + 1, lines[number].split()) for number in filled)


def read_text(table: Table) -> str:
    """The text of a table, or of the table in a zip archive. Raises DataError."""
    # Recognised by its first bytes: the downloaded table and its zip archive may have any name.
    content = table.content
    if content.startswith(b'PK'):
        content = read_zipped(table)
    encoding = 'utf-16' if content.startswith((b'\xff\xfe', b'\xfe\xff')) else 'utf-8-sig'
    return content.decode(encoding, 'replace')


def read_zipped(table: Table) -> bytes:
    """The content of the table in a zip archive. Raises DataError."""
    try:
        with zipfile.ZipFile(io.BytesIO(table.content)) as archive:
            # The table with an official name, or the only text file except for a README or LICENSE.
            names = [name for name in archive.namelist() if name.endswith(TEXT_SUFFIXES)]
            names = [name for name in names if all(why_skipped(part) is None for part in name.split('/'))]
            known = [name for each in table.names for name in names if name.rpartition('/')[2] == each]
            others = [name for name in names if not re.search(r'(?i)(readme|licen[cs]e)[^/]*$', name)]
            if known or len(others) == 1:
                return archive.read((known or others)[0])
    except Exception:  # a damaged archive can raise any exception
        others = []
    if others:
        raise DataError(f'{table.name} contains several tables, {", ".join(others)}: unpack the one to use')
    raise DataError(f'{table.name} is not a readable zip archive of a table')


def look_up(labels: Labels, names: list[str], indices: Iterable[int]) -> list:
    """The labels of the images `names[indices]`. Raises DataError if one is missing, or ambiguous.

    names: all images of the source, since one that is left out makes a name ambiguous, too.
    """
    # A row has the name of an image with all its folders, with some of them or, as in CelebA's tables, without.
    rows, keys = labels.rows, []
    owners: dict[str, int] = {}
    for index, name in enumerate(names):
        parts = name.split('/')
        key = next((key for start in range(len(parts)) if (key := '/'.join(parts[start:])) in rows), '')
        owner = owners.setdefault(key, index) if key else index
        if owner != index and not labels.from_folders:
            remedy = 'rename one of them' if names[owner] == name else 'write the names in the table with their folders'
            raise DataError(f'{labels.origin}: {key!r} may be {names[owner]!r} or {name!r}: {remedy}')
        keys.append(key)

    found = [(names[index], keys[index]) for index in indices]
    if missing := [name for name, key in found if not key]:
        example = f'like {next(reversed(rows))!r}' if rows else 'but there are none'
        lacks = f'{labels.origin} lacks {len(missing)} of {len(found)} images, first {missing[0]!r}'
        raise DataError(f'{lacks}: add rows with their names, {example}')
    return [rows[key] for _, key in found]


def combinations(conditions: np.ndarray) -> tuple[str, ...]:
    """How attributes occur together: evenly spaced rows of (N, attributes), each as text such as '101'."""
    rows = np.linspace(0, len(conditions) - 1, min(len(conditions), MAX_COMBINATIONS)).astype(int)
    return tuple(''.join('1' if value > 0 else '0' for value in row) for row in conditions[rows])
