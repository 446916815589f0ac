"""Folders and archives of images: what is listed, read and refused, whole and damaged."""

import gzip
import io
import os
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_one_line, encode, run_command
from dataset_helpers import file_names, write_archive

from dataset import DataError, source
from dataset.source import Source

IMAGE = encode(np.full((4, 4, 3), 7))


def write(folder, files: dict[str, bytes], zipped=False) -> Path:
    """Write files by name, into a folder or into the archive folder.zip."""
    if zipped:
        with zipfile.ZipFile(folder.with_suffix('.zip'), 'w') as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return folder.with_suffix('.zip')
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(path, **options) -> dict[str, bytes]:
    source = Source(path, **options)
    return {image.name: source.read(image) for image in source.images}


# --- Folders and archives


@pytest.mark.parametrize('zipped', [False, True])
def test_subfolders_are_searched_in_the_order_of_names(tmp_path, zipped):
    names = ['a.png', 'b/d.bmp', 'b/deep/c.JPG']
    hidden = ['._a.png', '.hidden.png', '__MACOSX/a.png', '.git/a.png', 'b/._d.bmp']
    path = write(tmp_path / 'faces', {name: name.encode() for name in [*reversed(names), *hidden]}, zipped)
    assert list(contents(path).items()) == [(name, name.encode()) for name in names]
    assert Source(path).others == {}


@pytest.mark.parametrize('zipped', [False, True])
def test_folders_of_systems_and_of_results_are_left_out_and_named(tmp_path, zipped):
    names = [
        '@eaDir/a.png/THUMB.jpg', '#recycle/a.png', 'b/$RECYCLE.BIN/a.png', 'lost+found/a.png', 'c/samples/a.png',
        'c/run.json', 'd/images/a.png', 'd/latents.npy', 'e/evaluation.json', 'e/neighbours.png',
    ]  # fmt: skip
    path = write(tmp_path / 'faces', {name: b'' for name in ['b/a.png', 'run.json', *names]}, zipped)
    assert list(contents(path)) == ['b/a.png']
    system, result = 'system folder', 'folder of results'
    assert Source(path).others == {
        'run.json': '.json', '@eaDir': system, '#recycle': system, 'b/$RECYCLE.BIN': system, 'lost+found': system,
        'c': result, 'd': result, 'e': result,
    }  # fmt: skip


def test_folders_to_skip_are_left_out_whichever_way_they_are_spelled(tmp_path, monkeypatch):
    write(tmp_path, {'faces/a.png': IMAGE, 'faces/data/b.png': IMAGE, 'faces/c/data/d.png': IMAGE})
    (tmp_path / 'link').symlink_to('faces')
    monkeypatch.chdir(tmp_path / 'faces')
    for path in ('.', tmp_path / 'faces', '../link'):
        for skip in ('data', '../link/data', tmp_path / 'faces' / 'c' / '..' / 'data'):
            assert list(contents(path, skip=[skip])) == ['a.png', 'c/data/d.png']
    assert list(contents('data', skip=['data'])) == ['b.png']


def encoded(image_format) -> bytes:
    return encode(np.full((4, 4, 3), 7), image_format)


KINDS = ['JPEG', 'PNG', 'GIF', 'BMP', 'WEBP', 'TIFF', 'PPM']


@pytest.mark.parametrize('zipped', [False, True])
def test_images_are_recognised_by_their_suffix_or_else_by_their_first_bytes(tmp_path, zipped):
    known = ['.jfif', '.JPE', '.pjpeg', '.pjp', '.pnm', '.pbm', '.pgm', '.dib', '.apng', '.tif', '.webp']
    images = {f'known{suffix}': b'' for suffix in known}
    images |= {
        f'{kind}{suffix}': encoded(kind) for kind in KINDS for suffix in ('', '.jpg_large', '.1', '.HEIC', '.txt')
    }
    others = {
        'a.heic': b'\0\0\0\x18ftypheic', 'a.avif': b'\0\0\0\x18ftypavif', 'a.dng': encoded('TIFF'), 'notes': b'P1 P2',
        'empty': b'', 'b.txt': b'BM is not a bitmap, nor an image', 'c.zip': b'PK\x03\x04',
    }  # fmt: skip
    path = write(tmp_path / 'faces', images | others, zipped)
    assert sorted(contents(path)) == sorted(images)
    assert Source(path).others == {
        name: '.' + name.rpartition('.')[2] if '.' in name else 'without a suffix' for name in others
    }


def test_a_file_larger_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, 'MAX_BYTES', 100)
    files = {'allowed.png': bytes(100), 'large.png': bytes(101)}
    for path in (write(tmp_path / 'faces', files), write(tmp_path / 'faces', files, zipped=True)):
        images = Source(path)
        assert images.read(images.images[0]) == bytes(100)
        with pytest.raises(DataError, match='more than 100 bytes'):
            images.read(images.images[1])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'compress_type': zipfile.ZIP_LZMA}, 'compressed by LZMA, .*: unpack'),
        ({'compress_type': zipfile.ZIP_BZIP2}, 'compressed by bzip2, .*: unpack'),
        ({'compress_type': 9}, 'compressed by Deflate64, .*: unpack'),
        ({'compress_type': 97}, 'compressed by method 97, .*: unpack'),
        ({'flag_bits': 1}, 'encrypted: unpack'),
    ],
)
def test_an_entry_that_must_be_unpacked_says_so(tmp_path, options, message):
    with zipfile.ZipFile(tmp_path / 'faces.zip', 'w') as archive:
        for name in ('a.png', 'odd'):
            archive.writestr(name, bytes(10))
            for attribute, value in options.items():
                setattr(archive.infolist()[-1], attribute, value)
    images = Source(tmp_path / 'faces.zip')
    assert images.names == ['a.png'] and images.others == {'odd': 'without a suffix'}
    with pytest.raises(DataError, match=message):
        images.read(images.images[0])


def test_names_in_an_archive_are_never_used_as_paths(tmp_path):
    folder = tmp_path / 'a' / 'b'
    folder.parent.mkdir()
    names = ['../../up.png', '/tmp/absolute.png', 'C:\\drive.png', f'{tmp_path}/x.png', 'control\x1b\n.png', './d.png']
    path = write(folder, {name: name.encode() for name in names} | {'\\': b'', './': b''}, zipped=True)
    expected = [
        '../../up.png',
        'tmp/absolute.png',
        'C:/drive.png',
        f'{tmp_path}/x.png'[1:],
        'control\x1b\n.png',
        'd.png',
    ]
    assert sorted(contents(path).items()) == sorted(zip(expected, (name.encode() for name in names), strict=True))
    assert file_names(tmp_path) == ['a'] and file_names(tmp_path / 'a') == ['b.zip']
    assert not Path('/tmp/absolute.png').exists()


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_entries_of_one_name_are_several_images(tmp_path):
    with zipfile.ZipFile(tmp_path / 'faces.zip', 'w') as archive:
        for name, content in (('b.png', b'1'), ('a.png', b'2'), ('b.png', b'3')):
            archive.writestr(name, content)
    images = Source(tmp_path / 'faces.zip')
    assert [(image.name, images.read(image)) for image in images.images] == [
        ('a.png', b'2'), ('b.png', b'1'), ('b.png', b'3'),
    ]  # fmt: skip


def test_names_are_composed_and_without_backslashes(tmp_path):
    decomposed = 'e\u0301'
    for path in (
        write(tmp_path / 'faces', {f'{decomposed}/{decomposed}.png': b'1'}),
        write(tmp_path / 'faces', {f'{decomposed}\\{decomposed}.png': b'1'}, zipped=True),
    ):
        assert contents(path) == {'\xe9/\xe9.png': b'1'}


def test_names_in_utf_8_without_the_flag_are_read_as_utf_8(tmp_path):
    path = write(tmp_path / 'faces', {'\u00e9\u4e00.png': b'1', 'b.png': b'2'}, zipped=True)
    archive = bytearray(path.read_bytes())
    for signature, offset in ((b'PK\x01\x02', 9), (b'PK\x03\x04', 7)):
        archive[archive.index(signature) + offset] &= ~8
    path.write_bytes(archive)
    assert contents(path) == {'\u00e9\u4e00.png': b'1', 'b.png': b'2'}


def test_a_name_that_is_not_text_does_not_refuse_the_archive(tmp_path):
    path = write(tmp_path / 'faces', {'xx.png': b'1', 'b.png': b'2', '\u00e9.png': b'3'}, zipped=True)
    archive = path.read_bytes().replace(b'xx.png', b'x\xff.png')
    directory = bytearray(archive)
    directory[archive.index(b'PK\x01\x02') + 9] |= 8  # claims that the name is UTF-8
    path.write_bytes(directory)
    assert contents(path) == {'b.png': b'2', 'x\u00a0.png': b'1', '\xe9.png': b'3'}


# --- Damaged archives


def without_directory(archive, directory):
    end = archive.index(b'PK\x05\x06')
    return archive[:directory] + bytes(end - directory) + archive[end:]


DAMAGED_ARCHIVES = {
    'truncated': lambda archive, directory: archive[: len(archive) // 2],
    'without its beginning': lambda archive, directory: archive[directory + 10 :],
    'without its directory': without_directory,
    'page': lambda archive, directory: b'<!DOCTYPE html><title>Quota exceeded</title>',
    'nothing': lambda archive, directory: b'',
}


@pytest.mark.parametrize('damage', DAMAGED_ARCHIVES.values(), ids=DAMAGED_ARCHIVES)
def test_a_damaged_archive_is_an_error(tmp_path, damage):
    archive = write_archive(tmp_path / 'faces.zip', 20)
    whole = archive.read_bytes()
    archive.write_bytes(damage(whole, whole.index(b'PK\x01\x02')))
    with pytest.raises(DataError, match='faces.zip is neither a folder nor a readable zip archive') as error:
        _ = Source(archive).images
    assert '\n' not in str(error.value)


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        archive.addfile(tarfile.TarInfo('a.png'))
    return file.getvalue()


@pytest.mark.parametrize(
    ('content', 'what'),
    [
        (tar(), 'a tar archive: unpack'),
        (gzip.compress(tar(), mtime=0), 'perhaps a tar archive: unpack'),
        (b'7z\xbc\xaf\x27\x1c', 'a 7z archive: unpack'),
        (b'Rar!\x1a\x07\x00', 'a RAR archive: unpack'),
        (b'\n<!DOCTYPE html><title>Quota exceeded</title>', 'an HTML page: download'),
        (IMAGE, 'a single image: pass a folder'),
        (b'\0\0\0\x18ftypheic\0\0', 'a single HEIC or AVIF image: convert'),
        (b'', 'an empty file'),
    ],
)
def test_a_file_that_is_no_zip_archive_is_named_for_what_it_is(tmp_path, content, what):
    (tmp_path / 'faces.zip').write_bytes(content)
    with pytest.raises(DataError, match=f'faces.zip is neither .*: it is .*{what}'):
        Source(tmp_path / 'faces.zip').check_images()


@pytest.mark.parametrize(
    ('files', 'zipped', 'message'),
    [
        (
            {'a.tar': b'', 'b.txt': b''},
            False,
            r'left out: .tar \(1\), .txt \(1\). To use the archive: --data .*/faces/a.tar',
        ),
        ({'b/a.zip': b'PK'}, True, 'Unpack b/a.zip, which is an archive in an archive'),
        ({'a.HEIC': b'', 'b.heic': b''}, False, r'left out: .heic \(2\). To use .heic: convert to JPEG or PNG'),
        ({'data/a.png': IMAGE}, False, r'left out: --data-dir \(1\). To use the --data-dir: --data .*/faces/data'),
        ({f'a.{number}': b'' for number in range(20)}, False, r'.0 \(1\), .*, others \(10\)$'),
        ({'a.\x1b': b''}, False, r"'.\\x1b' \(1\)$"),
        ({}, True, r'contains no images \(JPEG, PNG, .*\)$'),
    ],
)
def test_a_source_without_images_says_what_it_has(tmp_path, files, zipped, message):
    path = write(tmp_path / 'faces', files, zipped)
    path.exists() or path.mkdir()
    with pytest.raises(DataError, match=message):
        Source(path, skip=[path / 'data']).check_images()


def test_links_to_folders_are_named_and_the_root_is_refused(tmp_path):
    (tmp_path / 'faces').mkdir()
    (tmp_path / 'faces' / 'link').symlink_to(tmp_path)
    with pytest.raises(DataError, match='To use the link to a folder: --data .*/faces/link'):
        Source(tmp_path / 'faces').check_images()
    with pytest.raises(DataError, match='is the root of the file system'):
        Source(tmp_path / '/').check_images()


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
    images = Source(tmp_path)
    assert images.names == ['a.png', 'dangling.png', 'loop.png']
    assert images.others == {'up': 'link to a folder', 'folder.png': 'link to a folder'}
    for image in images.images[1:]:
        with pytest.raises(OSError, match=image.name):
            images.read(image)


# --- Changes


@pytest.mark.parametrize('zipped', [False, True])
def test_a_file_that_has_changed_since_it_was_listed_is_an_error(tmp_path, zipped):
    path = write(tmp_path / 'faces', {'a.png': b'1', 'b.png': b'2'}, zipped)
    changed = path if zipped else path / 'a.png'
    for change in (changed.unlink, lambda: changed.write_bytes(b'12'), lambda: changed.chmod(0o600)):
        write(tmp_path / 'faces', {'a.png': b'1', 'b.png': b'2'}, zipped)
        changed.chmod(0o644)
        images = Source(path)
        assert images.read(images.images[0]) == b'1'
        change()
        with pytest.raises(source.ChangedError, match=f'{changed} has changed since it was listed'):
            images.read(images.images[0])


def fingerprint(path) -> str:
    return Source(path).fingerprint(28)


def test_the_fingerprint_is_made_from_the_images(tmp_path, monkeypatch):
    folder = write(tmp_path / 'faces', {'a.png': b'1', 'b.png': b'2', 'c/d.png': b'3'})
    os.utime(folder / 'a.png', ns=(0, 0))
    os.utime(folder / 'b.png', ns=(0, 0))
    first = fingerprint(folder)

    # Other files and other spellings of the path change nothing.
    (folder / '.DS_Store').write_bytes(b'1')
    (folder / 'notes.txt').write_bytes(b'1')
    (tmp_path / 'link').symlink_to('faces')
    monkeypatch.chdir(folder)
    assert {fingerprint(path) for path in (folder, '.', '../faces', tmp_path / 'link', f'{folder}/c/..')} == {first}
    assert Source(folder).fingerprint(64) != first

    # Two files of the same size and time that are exchanged, and every other change of the images.
    (folder / 'a.png').rename(folder / 'x')
    (folder / 'b.png').rename(folder / 'a.png')
    (folder / 'x').rename(folder / 'b.png')
    assert (exchanged := fingerprint(folder)) != first
    (folder / 'e.png').write_bytes(b'4')
    assert len({first, exchanged, fingerprint(folder)}) == 3


def test_links_to_files_belong_to_the_fingerprint(tmp_path):
    folder = write(tmp_path / 'faces', {'1.png': b'1'})
    for name in ('a', 'b'):
        (tmp_path / name).write_bytes(b'1')
        os.utime(tmp_path / name, ns=(0, 0))
    (folder / '2.png').symlink_to(tmp_path / 'a')
    first = fingerprint(folder)
    (folder / '2.png').unlink()
    (folder / '2.png').symlink_to(tmp_path / 'b')
    assert fingerprint(folder) != first


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
