"""Folders and archives of images: what is listed, read and refused, whole and damaged."""

import os
import re
import zipfile
from pathlib import Path

import pytest
from conftest import assert_one_line, run_command
from dataset_helpers import file_names, write_archive

from dataset import DataError, source
from dataset.source import Source

# --- Folders and archives


def test_a_folder_is_searched_with_its_subfolders_in_the_order_of_names(tmp_path):
    (tmp_path / 'b' / 'deep').mkdir(parents=True)
    for name in ('b/d.bmp', 'a.png', 'b/deep/c.JPG', 'notes.txt', '._a.png', '.hidden.png'):
        (tmp_path / name).write_text(name)
    names = Source(tmp_path).names
    assert names == ['a.png', 'b/d.bmp', 'b/deep/c.JPG']
    assert [Source(tmp_path).read(name) for name in names] == [name.encode() for name in names]


def test_an_archive_is_searched_like_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / 'faces.zip', 'w') as archive:
        archive.writestr('folder.png/', '')
        for name in ('b/d.bmp', 'a.png', 'b/deep/c.JPG', 'notes.txt', '__MACOSX/a.png', 'b/._d.bmp'):
            archive.writestr(name, name)
    names = Source(tmp_path / 'faces.zip').names
    assert names == ['a.png', 'b/d.bmp', 'b/deep/c.JPG']
    assert [Source(tmp_path / 'faces.zip').read(name) for name in names] == [name.encode() for name in names]


def test_a_file_larger_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, 'MAX_BYTES', 100)
    with zipfile.ZipFile(tmp_path / 'faces.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, size in (('allowed.png', 100), ('large.png', 101)):
            archive.writestr(name, bytes(size))
            (tmp_path / name).write_bytes(bytes(size))
    for path in (tmp_path, tmp_path / 'faces.zip'):
        read = Source(path).read
        assert read('allowed.png') == bytes(100)
        with pytest.raises(DataError, match='more than 100 bytes'):
            read('large.png')


@pytest.mark.parametrize('method', [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_compression_without_a_limit_to_its_output_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / 'faces.zip', 'w', method) as archive:
        archive.writestr('a.png', bytes(10))
    with pytest.raises(DataError, match='neither stored nor deflated'):
        Source(tmp_path / 'faces.zip').read('a.png')


def test_names_in_an_archive_are_never_used_as_paths(tmp_path):
    folder = tmp_path / 'a' / 'b'
    folder.mkdir(parents=True)
    names = ['../../up.png', '/tmp/absolute.png', 'C:\\drive.png', f'{tmp_path}/x.png']
    with zipfile.ZipFile(folder / 'faces.zip', 'w') as archive:
        for name in names:
            archive.writestr(name, name)
    archive = Source(folder / 'faces.zip')
    assert archive.names == sorted(names)
    assert [archive.read(name).decode() for name in names] == names
    assert file_names(tmp_path) == ['a'] and file_names(tmp_path / 'a') == ['b'] and file_names(folder) == ['faces.zip']
    assert not Path('/tmp/absolute.png').exists()


# --- Damaged archives


def without_directory(archive, directory):
    end = archive.index(b'PK\x05\x06')
    return archive[:directory] + bytes(end - directory) + archive[end:]


def with_a_name_that_is_not_text(archive, directory):
    damaged = bytearray(archive)
    damaged[directory + 9] |= 8  # claims that the name is UTF-8
    damaged[directory + 46] = 0xFF
    return bytes(damaged)


DAMAGED_ARCHIVES = {
    'truncated': lambda archive, directory: archive[: len(archive) // 2],
    'without its beginning': lambda archive, directory: archive[directory + 10 :],
    'without its directory': without_directory,
    'name that is not text': with_a_name_that_is_not_text,
    'page': lambda archive, directory: b'<!DOCTYPE html><title>Quota exceeded</title>',
    'nothing': lambda archive, directory: b'',
}


@pytest.mark.parametrize('damage', DAMAGED_ARCHIVES.values(), ids=DAMAGED_ARCHIVES)
def test_a_damaged_archive_is_an_error(tmp_path, damage):
    archive = write_archive(tmp_path / 'faces.zip', 20)
    whole = archive.read_bytes()
    archive.write_bytes(damage(whole, whole.index(b'PK\x01\x02')))
    with pytest.raises(DataError, match='faces.zip is neither a folder nor a readable zip archive') as error:
        _ = Source(archive).names
    assert '\n' not in str(error.value)


def test_a_command_reports_a_damaged_archive_in_one_line(tmp_path):
    (tmp_path / 'faces.zip').write_text('<html>')
    result = run_command('train.py', '--data', 'faces.zip', cwd=tmp_path)
    assert_one_line(result)
    assert result.stdout == ''
    assert re.fullmatch(r'train.py: error: \S*faces.zip is neither a folder nor a .* zip archive.*\n', result.stderr)


# --- Paths


def test_links_and_pipes_in_a_folder_do_no_harm(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'a')
    (tmp_path / 'dangling.png').symlink_to('nowhere')
    (tmp_path / 'loop.png').symlink_to('loop.png')
    (tmp_path / 'up').symlink_to('..')
    (tmp_path / 'folder.png').symlink_to('.')
    os.mkfifo(tmp_path / 'pipe.png')  # whoever opens it waits forever
    assert Source(tmp_path).names == ['a.png', 'dangling.png', 'loop.png']
    for name in ('dangling.png', 'loop.png'):
        with pytest.raises(OSError, match=name):
            Source(tmp_path).read(name)


def test_files_added_after_the_listing_change_neither_names_nor_fingerprint(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'a')
    before = Source(tmp_path)
    fingerprint = before.fingerprint(28)
    (tmp_path / 'b.png').write_bytes(b'b')
    assert before.names == ['a.png'] and before.fingerprint(28) == fingerprint
    after = Source(tmp_path)
    assert after.names == ['a.png', 'b.png'] and after.fingerprint(28) != fingerprint


@pytest.mark.parametrize('name', ['missing', 'loop'])
def test_a_missing_source_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / 'loop').symlink_to('loop')
    for use in (lambda source: source.names, lambda source: source.fingerprint()):
        with pytest.raises(OSError, match=f'{tmp_path}/{name}'):
            use(Source(tmp_path / name))
