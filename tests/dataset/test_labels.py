"""Attribute and identity tables as people have them: the official text, zipped, CSV files, folders, and broken ones."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import encode
from dataset_helpers import write_archive

from dataset import DataError
from dataset.labels import (
    MAX_COMBINATIONS,
    TABLES,
    Labels,
    combinations,
    find_table,
    load_attributes,
    load_people,
    look_up,
    open_table,
    read_attributes,
    read_text,
)  # fmt: skip
from dataset.source import Source

OFFICIAL = '2\r\nBald Smiling Young \r\n000001.jpg -1  1  1\r\n000002.jpg -1 -1  1\r\n'
EXPECTED = {'000001.jpg': [1, -1], '000002.jpg': [-1, -1]}


def write_zip(path, name, text):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(name, text)
    return path


# --- tables


@pytest.mark.parametrize(
    'text',
    [
        OFFICIAL,
        OFFICIAL.partition('\n')[2],
        'image_id,Bald,Smiling,Young\n000001.jpg,-1,1,1\n000002.jpg,-1,-1,1\n',
        '\ufefffile, Bald, Smiling, Young\n000001.jpg, 0, TRUE, 1\n\n"000002.jpg",False,0,1\n',
    ],
)
@pytest.mark.parametrize('zipped', [False, True])
def test_a_table_gives_the_attributes_that_are_asked_for_in_their_order(tmp_path, text, zipped):
    path = tmp_path / 'table'
    if zipped:
        write_zip(path, 'list_attr_celeba.txt', text)
    else:
        path.write_text(text, newline='')
    assert read_attributes(open_table(path), ['Smiling', 'Bald']).rows == EXPECTED


@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('start', ['', '\n \r\n', '\n2\n\n', 'sep={}\n'])
def test_values_may_be_separated_by_other_characters_after_empty_lines(tmp_path, delimiter, encoding, start):
    lines = ['file,Smiling,"Bald, or not"', './a b.png,1,0', '"c\\d;e.png",0,1', 'e\u0301.png,1,1', ',,']
    text = start.format(delimiter) + '\r\n'.join(delimiter.join(row) for row in csv.reader(lines))
    if delimiter != '\t':
        file = io.StringIO()
        csv.writer(file, delimiter=delimiter).writerows(csv.reader(lines))
        text = start.format(delimiter) + file.getvalue()
    (tmp_path / 'table').write_text(text, encoding, newline='')
    labels = read_attributes(open_table(tmp_path / 'table'), ['Bald, or not', 'Smiling'])
    assert labels.rows == {'a b.png': [-1, 1], 'c/d;e.png': [1, -1], '\xe9.png': [1, 1]}


def test_the_lines_of_rows_that_contradict_are_named(tmp_path):
    (tmp_path / 'table').write_text('\nfile,Smiling,Bald\na.png,1,0\nb.png,1,1\n./a.png,1,1\n\na.png,0,0\n')
    assert read_attributes(open_table(tmp_path / 'table'), ['Bald'] * 0).rows == {'a.png': [], 'b.png': []}
    with pytest.raises(DataError, match="table, line 5: 'a.png' contradicts line 3"):
        read_attributes(open_table(tmp_path / 'table'), ['Bald'])
    with pytest.raises(DataError, match="table, line 7: 'a.png' contradicts line 3"):
        read_attributes(open_table(tmp_path / 'table'), ['Smiling'])
    (tmp_path / 'identity_CelebA.txt').write_text('a.png 1\nb.png 1\na.png 2\n')
    with pytest.raises(DataError, match="identity_CelebA.txt, line 3: 'a.png' contradicts line 1"):
        load_people(Source(write_archive(tmp_path / 'faces.zip', 1)))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (OFFICIAL.replace('Smiling', 'Smilling'), 'has no attribute Smiling: it has Bald, Smilling, Young'),
        (OFFICIAL.replace('-1 -1  1', '-1  1'), 'table, line 4: 2 values for 3 attributes'),
        (OFFICIAL.replace('-1 -1  1', '-1 ?  1'), r"table, line 4: '\?' is none of 1, true, -1, 0, false"),
        ('file,Smiling\na.png,\n', "table, line 2: '' is none of"),
        ('file,Smiling\n"' + 200_000 * 'a', 'is malformed: field larger than'),
        ('file,Smiling,Smiling\na.png,1,0', 'has several columns Smiling'),
        ('', 'is not an attribute table'),
        ('7', 'is not an attribute table'),
        ('\x00\x1b[31m picture', 'is not an attribute table in UTF-8'),
        ('\ufffdPNG', 'is not an attribute table in UTF-8'),
        ('PK no zip', 'is not a readable zip archive of a table'),
    ],
)
def test_a_table_that_cannot_be_used_is_an_error_of_one_line(tmp_path, text, message):
    (tmp_path / 'table').write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_attributes(open_table(tmp_path / 'table'), ['Smiling'])
    assert str(tmp_path / 'table') in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('names', 'result'),
    [
        (['README.txt', 'anno/list_attr_celeba.txt', 'identity_CelebA.txt', '__MACOSX/list_attr_celeba.txt'], 1),
        (['readme.txt', 'LICENSE.txt', 'labels.csv', 'a.png'], 2),
        (['a.csv', 'b.csv'], 'table contains several tables, a.csv, b.csv: unpack the one to use'),
        (['a.png'], 'not a readable zip archive of a table'),
    ],
)
def test_a_table_may_be_zipped_with_other_files(tmp_path, names, result):
    with zipfile.ZipFile(tmp_path / 'table', 'w') as archive:
        for name in names:
            archive.writestr(name, f'{name} Smiling\na.png 1\n')
    table = open_table(tmp_path / 'table')
    if isinstance(result, str):
        with pytest.raises(DataError, match=result):
            read_attributes(table, ['Smiling'])
    else:
        text = f'{names[result]} Smiling\na.png 1\n'
        assert read_text(table) == text and read_attributes(table, ['Smiling']).rows == {'a.png': [1]}


# --- labels of images


def test_images_are_found_by_their_whole_names_first_and_then_by_fewer_folders():
    labels = Labels('table', {'a/1.png': 1, '1.png': 2, '2.png': 3, 'c/4.png': 4})
    names = ['a/1.png', 'b/1.png', 'b/2.png', 'd/c/4.png', 'e/5.png', 'c/6.png']
    assert look_up(labels, names, range(4)) == [1, 2, 3, 4]
    assert look_up(labels, names, [3, 1]) == [4, 2]
    with pytest.raises(DataError, match="table lacks 2 of 6 images, first 'e/5.png': add rows .* like 'c/4.png'"):
        look_up(labels, names, range(6))


def test_a_row_that_may_be_several_images_is_an_error():
    labels = Labels('table', {'1.png': 1, 'b/2.png': 2})
    for names, remedy in (
        (['a/1.png', 'b/1.png'], 'write the names in the table with their folders'),
        (['1.png', 'b/1.png'], 'write the names'),
        (['b/2.png', 'b/2.png'], 'rename one of them'),
    ):
        with pytest.raises(DataError, match=f'table: .* may be {names[0]!r} or {names[1]!r}: {remedy}'):
            look_up(labels, names, [0])  # although the second image is left out


@pytest.mark.parametrize('header', ['', 'image identity\n', 'image_id,identity_id\n'])
def test_who_is_on_an_image_is_read_like_an_attribute_table(tmp_path, header):
    text = header + '000001.jpg 2880\n000002.jpg 7\n\n000003.jpg 2880\n'.replace(' ', ',' if ',' in header else ' ')
    inside = write_archive(tmp_path / 'faces.zip', 1)
    with zipfile.ZipFile(inside, 'a') as archive:
        archive.writestr('anno/identity_CelebA.txt', text)
    folder, beside = tmp_path / 'folder' / 'faces', write_archive(tmp_path / 'beside' / 'faces.zip', 1)
    folder.mkdir(parents=True)
    (folder / 'identity_CelebA.txt').write_text(text)
    write_zip(tmp_path / 'beside' / 'identity_CelebA.zip', 'identity_CelebA.txt', text)
    for path in (inside, folder, beside):
        people = load_people(Source(path))
        names = ['img_align_celeba/000003.jpg', '000002.jpg', 'me.png']
        assert look_up(people, names, range(2)) == ['2880', '7']
        with pytest.raises(
            DataError, match="identity_CelebA.* lacks 1 of 3 images, first 'me.png'.* like '000003.jpg'"
        ):
            look_up(people, names, range(3))
    with pytest.raises(DataError, match='nowhere/identity_CelebA.txt is missing, .* use --hold-out images'):
        load_people(Source(tmp_path / 'nowhere' / 'faces'))


# --- where tables are found


def test_a_table_is_found_in_or_next_to_a_folder_or_archive(tmp_path):
    archive, folder = write_archive(tmp_path / 'faces.zip', 1), tmp_path / 'faces'
    folder.mkdir()

    def found(path):
        table = find_table(Source(path), TABLES)
        return table and Path(table.name)

    assert found(archive) is None and found(folder) is None
    beside = write_zip(tmp_path / 'list_attr_celeba.zip', 'list_attr_celeba.txt', OFFICIAL)
    assert found(archive) == found(folder) == found(tmp_path / 'not downloaded.zip') == beside
    (folder / 'attributes.csv').write_text('file,Smiling\n')
    assert found(archive) == beside and found(folder) == folder / 'attributes.csv'
    assert load_attributes(Source(archive), ['Smiling', 'Bald']).rows == EXPECTED
    table = open_table(beside)
    assert load_attributes(Source(folder), ['Smiling'], table).rows == {'000001.jpg': [1], '000002.jpg': [-1]}
    with zipfile.ZipFile(archive, 'a') as opened:
        opened.writestr('__MACOSX/attributes.csv', '')
        opened.writestr('anno/list_attr_celeba.txt', '')
        opened.writestr('attributes.csv', '')
    assert found(archive) == archive / 'attributes.csv'
    with zipfile.ZipFile(write_archive(archive, 1), 'a') as opened:
        opened.writestr('anna/attributes.csv', '')
        opened.writestr('ben/attributes.csv', '')
    with pytest.raises(DataError, match='several tables, anna/attributes.csv, ben/attributes.csv'):
        found(archive)


def test_a_table_with_the_attributes_is_preferred_to_folders(tmp_path):
    folder = tmp_path / 'faces'
    for name in ('Smiling/1.png', 'Bald/2.png'):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(encode(np.zeros((4, 4, 3))))
    (folder / 'attributes.csv').write_text('file,Smiling\n1.png,0\n2.png,1\n')
    labels = load_attributes(Source(folder), ['Smiling'])
    assert labels.origin == str(folder / 'attributes.csv') and labels.rows == {'1.png': [-1], '2.png': [1]}
    labels = load_attributes(Source(folder), ['Smiling', 'Bald'])
    assert labels.origin == f'the folders of {folder}'
    assert labels.rows == {'Smiling/1.png': [1, -1], 'Bald/2.png': [-1, 1]}
    with pytest.raises(DataError, match='attributes.csv has no attribute Male: it has Smiling'):
        load_attributes(Source(folder), ['Smiling', 'Male'])
    with pytest.raises(DataError, match='attributes.csv has no attribute Bald: it has Smiling'):
        load_attributes(Source(folder), ['Bald'], open_table(folder / 'attributes.csv'))


@pytest.mark.parametrize('zipped', [False, True])
def test_folders_are_attributes(tmp_path, zipped):
    names = ['cats/black/1.png', 'cats/2.png', 'dogs/black/1.png']
    source = tmp_path / 'pets'
    if zipped:
        with zipfile.ZipFile(source, 'w') as archive:
            for name in names:
                archive.writestr(f'pets/{name}', encode(np.zeros((4, 4, 3))))
    else:
        for name in names:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(encode(np.zeros((4, 4, 3))))
    values = load_attributes(Source(source), ['dogs', 'cats', 'black']).rows
    prefix = 'pets/' if zipped else ''
    assert values == {prefix + names[0]: [-1, 1, 1], prefix + names[1]: [-1, 1, -1], prefix + names[2]: [1, -1, 1]}


def test_without_a_table_or_folders_the_error_says_where_one_belongs(tmp_path):
    with pytest.raises(DataError, match='no folder in .* is named Male, .*list_attr_celeba.txt,.* --attribute-table'):
        load_attributes(Source(write_archive(tmp_path / 'faces.zip', 3)), ['Male'])
    with pytest.raises(OSError, match='nowhere'):
        load_attributes(Source(tmp_path / 'nowhere'), ['Male'])
    with pytest.raises(OSError, match='nothing.txt'):
        open_table(tmp_path / 'nothing.txt')


def test_combinations_are_spread_evenly_over_the_data():
    conditions = np.where(np.arange(4000)[:, None] < [1000, 3000], 1, -1)
    some = combinations(conditions)
    assert len(some) == MAX_COMBINATIONS
    shares = [some.count(each) / len(some) for each in ('11', '01', '00')]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.01)
    assert combinations(conditions[:3]) == ('11', '11', '11') and combinations(conditions[:0]) == ()
