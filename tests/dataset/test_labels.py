"""Attribute and identity tables as people have them: the official text, zipped, CSV files, folders, and broken ones."""

import zipfile

import numpy as np
import pytest
from conftest import encode
from dataset_helpers import write_archive

from dataset import DataError
from dataset.labels import (
    MAX_COMBINATIONS,
    combinations,
    find_table,
    load_attributes,
    load_people,
    look_up,
    read_attributes,
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
    table = tmp_path / 'table'
    if zipped:
        write_zip(table, 'list_attr_celeba.txt', text)
    else:
        table.write_text(text, newline='')
    assert read_attributes(table, ['Smiling', 'Bald']) == EXPECTED


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (OFFICIAL.replace('Smiling', 'Smilling'), 'has no attribute Smiling: it has Bald, Smilling, Young'),
        (OFFICIAL.replace('-1 -1  1', '-1  1'), 'table, line 4: 2 values for 3 attributes'),
        (OFFICIAL.replace('-1 -1  1', '-1 ?  1'), r"table, line 4: '\?' is none of 1, true, -1, 0, false"),
        ('file,Smiling\na.png,\n', "table, line 2: '' is none of"),
        ('file,Smiling\n"' + 200_000 * 'a', 'is malformed: field larger than'),
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
        read_attributes(tmp_path / 'table', ['Smiling'])
    assert str(tmp_path / 'table') in str(error.value) and '\n' not in str(error.value)


def test_a_zip_without_a_table_is_an_error(tmp_path):
    with pytest.raises(DataError, match='not a readable zip archive of a table'):
        read_attributes(write_archive(tmp_path / 'images.zip', 2), ['Smiling'])


def test_images_are_found_by_their_whole_names_first_and_then_by_their_files():
    values = {'a/1.png': [1], '1.png': [-1], '2.png': [-1]}
    conditions = look_up(values, ['a/1.png', 'b/1.png', 'b/2.png'])
    assert conditions.dtype == np.int8 and conditions.tolist() == [[1], [-1], [-1]]
    with pytest.raises(DataError, match="lacks 2 of 3 images, first 'c/3.png'"):
        look_up(values, ['2.png', 'c/3.png', '4.png'])


def test_who_is_on_an_image_is_found_by_the_name_of_its_file(tmp_path):
    table = tmp_path / 'identity.txt'
    table.write_text('image identity\n000001.jpg 2880\n000002.jpg 7\n\n000003.jpg 2880\n')
    assert load_people(table, ['img_align_celeba/000003.jpg', '000002.jpg']) == ['2880', '7']
    with pytest.raises(DataError, match="identity.txt has no identity for 'me.png', .* use --hold-out images"):
        load_people(table, ['000001.jpg', 'me.png'])
    with pytest.raises(DataError, match='nowhere is missing'):
        load_people(tmp_path / 'nowhere', [])


# --- where tables are found


def test_a_table_is_found_beside_an_archive_and_in_or_beside_a_folder(tmp_path):
    archive, folder = write_archive(tmp_path / 'faces.zip', 1), tmp_path / 'faces'
    folder.mkdir()
    assert find_table(archive) is None and find_table(folder) is None
    beside = write_zip(tmp_path / 'list_attr_celeba.zip', 'list_attr_celeba.txt', OFFICIAL)
    assert find_table(archive) == find_table(folder) == beside
    (folder / 'attributes.csv').write_text('file,Smiling\n')
    assert find_table(archive) == beside and find_table(folder) == folder / 'attributes.csv'
    assert load_attributes(Source(archive), ['Smiling', 'Bald']) == EXPECTED
    assert load_attributes(Source(folder), ['Smiling'], beside) == {'000001.jpg': [1], '000002.jpg': [-1]}


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
    values = load_attributes(Source(source), ['dogs', 'cats', 'black'])
    prefix = 'pets/' if zipped else ''
    assert values == {prefix + names[0]: [-1, 1, 1], prefix + names[1]: [-1, 1, -1], prefix + names[2]: [1, -1, 1]}


def test_without_a_table_or_folders_the_error_says_where_one_belongs(tmp_path):
    with pytest.raises(DataError, match='no folder in .* is named Male, .*list_attr_celeba.txt,.* --attribute-table'):
        load_attributes(Source(write_archive(tmp_path / 'faces.zip', 3)), ['Male'])
    with pytest.raises(OSError, match='nowhere'):
        load_attributes(Source(tmp_path / 'nowhere'), ['Male'])
    with pytest.raises(OSError, match='nothing.txt'):
        load_attributes(Source(tmp_path), ['Male'], tmp_path / 'nothing.txt')


def test_combinations_are_spread_evenly_over_the_data():
    conditions = np.where(np.arange(4000)[:, None] < [1000, 3000], 1, -1)
    some = combinations(conditions)
    assert len(some) == MAX_COMBINATIONS
    shares = [some.count(each) / len(some) for each in ('11', '01', '00')]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.01)
    assert combinations(conditions[:3]) == ('11', '11', '11') and combinations(conditions[:0]) == ()
