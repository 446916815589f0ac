"""The prepared array: made once, by several processes, from damaged images and on full disks."""

import contextlib
import errno
import functools
import io
import json
import multiprocessing
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import encode
from dataset_helpers import PYTHON, file_names, write_archive
from PIL import Image

from dataset import DataError, images, prepared
from dataset import source as source_module
from dataset.prepared import load_prepared, open_prepared, save_prepared
from dataset.source import Source
from helper import get_image

SIZE = 28
SHAPE = SIZE, SIZE, 3
read_image = functools.partial(get_image, width=SIZE, height=SIZE)
# A program that prepares the faces of one path in another.
LOAD = 'import sys, helper\nfaces = helper.load_faces(sys.argv[1], 28, sys.argv[2]).faces\n'


def load(source, cache_dir, read=read_image):
    return load_prepared(Source(source), SHAPE, cache_dir, read).faces


def values(faces) -> list[int]:
    """The value of the first pixel of each face."""
    return faces[:, 0, 0, 0].tolist()


# --- Made once


def test_an_array_is_made_once(tmp_path):
    archive = write_archive(tmp_path / 'faces.zip', 44)
    first = load(archive, tmp_path / 'cache')
    assert first.shape == (44, 28, 28, 3) and first.dtype == np.uint8 and isinstance(first, np.memmap)
    assert values(first) == list(range(44))
    np.testing.assert_array_equal(load(archive, tmp_path / 'cache', read=None), first)


def test_an_array_is_named_after_all_that_decides_its_content(tmp_path):
    archive = write_archive(tmp_path / 'faces.zip', 1)
    for made_with in ((108, 'bilinear'), (178, 'bilinear'), (108, 'bicubic')):
        load_prepared(Source(archive), SHAPE, tmp_path / made_with[1], read_image, *made_with)
        fingerprint = Source(archive).fingerprint(SIZE, *made_with)
        assert f'faces-28-{fingerprint}.npy' in file_names(tmp_path / made_with[1])
    assert len(file_names(tmp_path / 'bilinear')) == 4 and len(file_names(tmp_path / 'bicubic')) == 2


@pytest.mark.parametrize('letter', ['x', '\xe9', '\u4e00'])
def test_the_name_of_a_source_may_be_as_long_as_a_file_name(tmp_path, letter):
    folder = tmp_path / (letter * (250 // len(letter.encode())))
    folder.mkdir()
    (folder / 'a.png').write_bytes(encode(np.full((9, 9, 3), 5)))
    for _ in range(2):
        assert values(load(folder, tmp_path / 'cache')) == [5]
    (name,) = (path.name for path in (tmp_path / 'cache').glob('*.npy'))
    assert name.startswith(letter * 33 + '-28-' if letter == '\u4e00' else letter)


def test_a_changed_folder_or_another_size_makes_a_new_array(tmp_path):
    source, cache = tmp_path / 'faces', tmp_path / 'cache'
    source.mkdir()
    (source / 'a.png').write_bytes(encode(np.full((9, 9, 3), 5)))
    assert values(load(source, cache)) == [5]
    (source / 'a.png').write_bytes(encode(np.full((9, 9, 3), 60)))
    assert values(load(source, cache)) == [60]
    (source / 'b.png').write_bytes(encode(np.full((9, 9, 3), 70)))
    assert values(load(source, cache)) == [60, 70]
    large = functools.partial(get_image, width=64, height=64)
    assert load_prepared(Source(source), (64, 64, 3), cache, large).faces.shape == (2, 64, 64, 3)
    assert len(list(cache.glob('*.npy'))) == 4


def test_blocks_of_any_size_become_one_array(tmp_path):
    faces = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), np.uint8)
    saved = save_prepared(tmp_path / 'new' / 'faces.npy', (4, 4, 3), (faces[:1], faces[1:1], faces[1:]))
    np.testing.assert_array_equal(saved, faces)
    np.testing.assert_array_equal(open_prepared(tmp_path / 'new' / 'faces.npy', (4, 4, 3)), faces)
    file = io.BytesIO()
    np.save(file, faces)
    assert (tmp_path / 'new' / 'faces.npy').read_bytes() == file.getvalue()


def test_a_missing_array_is_none(tmp_path):
    assert open_prepared(tmp_path / 'faces.npy', (28, 28, 3)) is None


def test_an_interrupted_preparation_leaves_nothing(tmp_path):
    def interrupted():
        yield np.zeros((7, 28, 28, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_prepared(tmp_path / 'faces.npy', (28, 28, 3), interrupted())
    assert file_names(tmp_path) == []


# --- Several processes


@pytest.fixture
def two_processes(monkeypatch):
    """Two decoding processes however few images and cores there are."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(prepared, 'MIN_CHUNKS', 1)
    monkeypatch.setattr(prepared, 'CHUNK', 8)


def test_several_processes_keep_the_order_of_names(tmp_path, two_processes, capsys):
    archive = write_archive(tmp_path / 'faces.zip', 200, 2)
    assert values(load(archive, tmp_path)) == list(range(200))
    assert '2 of 202 images' in capsys.readouterr().out


def test_the_number_of_images_in_flight_is_bounded(tmp_path, two_processes, monkeypatch):
    submitted = []

    class Pool(ProcessPoolExecutor):
        def submit(self, function, *args):
            submitted.append(args)
            return super().submit(function, *args)

    monkeypatch.setattr(prepared, 'ProcessPoolExecutor', Pool)
    monkeypatch.setattr(prepared, 'CHUNK', 1)
    archive = write_archive(tmp_path / 'faces.zip', 100)
    with contextlib.closing(prepared.decode_chunks(Source(archive), read_image)) as results:
        for received, ((face,), failures) in enumerate(results):
            assert face[0, 0, 0] == received and failures == []
            assert len(submitted) <= received + 2 * prepared.MAX_PENDING
    assert len(submitted) == received + 1 == 100


@pytest.mark.skipif(not hasattr(os, 'sched_getaffinity'), reason='needs sched_getaffinity')
def test_a_decoding_process_is_started_for_each_core_that_may_be_used(tmp_path, two_processes, monkeypatch):
    processes = []

    class Pool(ProcessPoolExecutor):
        def __init__(self, max_workers, *args):
            processes.append(max_workers)
            super().__init__(1, *args)

    monkeypatch.setattr(prepared, 'ProcessPoolExecutor', Pool)
    archive = write_archive(tmp_path / 'faces.zip', 1)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {1, 4, 5})
    load(archive, tmp_path / 'some')
    monkeypatch.delattr(os, 'sched_getaffinity')
    monkeypatch.setattr(os, 'cpu_count', lambda: 4)
    load(archive, tmp_path / 'all')
    assert processes == [3, 4]


def kill_this_process(_):
    os.kill(os.getpid(), 9)


def test_a_killed_decoding_process_is_an_error(tmp_path, two_processes):
    with pytest.raises(DataError, match='was killed'):
        load(write_archive(tmp_path / 'faces.zip', 20), tmp_path, read=kill_this_process)
    assert file_names(tmp_path) == ['faces.zip']


def test_decoding_processes_end_when_the_preparation_fails(tmp_path, two_processes, small_disk):
    archive = write_archive(tmp_path / 'faces.zip', 200)  # 470 kB of faces
    with pytest.raises(OSError, match='No space left on device') as error:
        load(archive, small_disk)
    assert multiprocessing.active_children() == [], error  # even while the error, and so its traceback, is kept


def test_decoding_processes_end_with_the_one_that_started_them(tmp_path):
    code = (
        'import multiprocessing, os, time\n'
        'from concurrent.futures import ProcessPoolExecutor\n'
        'from dataset.prepared import start_worker\n'
        'if __name__ == "__main__":\n'
        '    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), start_worker)\n'
        '    print(pool.submit(os.getpid).result(), flush=True)\n'
        '    time.sleep(60)\n'
    )
    (tmp_path / 'parent.py').write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path / 'parent.py'], **PYTHON)
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)  # it is running
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(worker, 0)
            time.sleep(0.05)


def test_two_programs_may_prepare_the_same_array_at_once(tmp_path):
    archive = write_archive(tmp_path / 'faces.zip', 1000)
    code = f'import sys\nprint("ready", flush=True)\nsys.stdin.readline()\n{LOAD}print(faces[:, 0, 0, 0].tolist())\n'
    command = [sys.executable, '-c', code, archive, tmp_path / 'cache']
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, **PYTHON) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ['ready\n'] * 2
    for process in processes:
        process.stdin.write('\n')
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=60)[0] == f'{[index % 256 for index in range(1000)]}\n'
    assert len(list((tmp_path / 'cache').glob('*'))) == 2


# --- Unreadable images


def test_what_is_left_out_is_counted_in_every_run_and_listed(tmp_path, capsys):
    folder = tmp_path / 'faces'
    shutil.unpack_archive(write_archive(tmp_path / 'faces.zip', 78, 2), folder)
    (folder / 'a.HEIC').write_bytes(b'')
    for _ in range(2):
        loaded = load_prepared(Source(folder), SHAPE, tmp_path, read_image)
        assert values(loaded.faces) == list(range(78)) and loaded.names == [f'{index:04}.png' for index in range(78)]
        (record,) = tmp_path.glob('*.json')
        left_out = f'Left out: 2 of 80 images, which cannot be read; other files: .heic (1) (listed in {record})'
        assert capsys.readouterr().out.startswith(f'{left_out}. To use .heic: convert')
    (_, _, reason), _ = loaded.unreadable
    assert reason and json.loads(record.read_text()) == {
        'images': 80,
        'unreadable': [[78, 'bad0.jpg', reason], [79, 'bad1.jpg', reason]],
        'others': {'a.HEIC': '.heic'},
    }

    # Other files change the list but not the array.
    (folder / 'a.HEIC').unlink()
    (folder / 'notes.txt').write_bytes(b'')
    load(folder, tmp_path, read=None)
    assert 'other files: .txt (1)' in capsys.readouterr().out
    assert json.loads(record.read_text())['others'] == {'notes.txt': '.txt'}


@pytest.mark.parametrize('text', [None, '[]', '{"images": 9, "unreadable": [], "others": {}}', '{"images": 8'])
def test_an_array_without_its_list_is_made_again(tmp_path, capsys, text):
    archive = write_archive(tmp_path / 'faces.zip', 8, 2)
    load(archive, tmp_path)
    (record,) = tmp_path.glob('*.json')
    whole = record.read_text()
    record.unlink() if text is None else record.write_text(text)
    assert load_prepared(Source(archive), SHAPE, tmp_path, read_image).names == [
        f'{index:04}.png' for index in range(8)
    ]
    assert record.read_text() == whole and f'{record} is missing or damaged' in capsys.readouterr().err


def test_the_list_is_complete_before_the_array_gets_its_name(tmp_path, monkeypatch):
    def stop(path, shape, blocks):
        path.parent.mkdir()
        list(blocks)
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared, 'save_prepared', stop)
    with pytest.raises(KeyboardInterrupt):
        load(write_archive(tmp_path / 'faces.zip', 8, 2), tmp_path / 'cache')
    (name,) = file_names(tmp_path / 'cache')
    assert name.endswith('.json')


def test_only_the_first_unreadable_images_are_named(tmp_path, capsys):
    assert len(load(write_archive(tmp_path / 'faces.zip', 1485, 15), tmp_path)) == 1485
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == prepared.MAX_NAMED and out.startswith('Left out: 15 of 1500 images')


@pytest.mark.parametrize('good, bad, message', [
    (1485, 16, 'more than 15 of its 1501'), (70, 11, 'more than 10 of its 81'), (0, 3, 'all of its 3'),
])  # fmt: skip
def test_more_unreadable_images_than_one_percent_or_ten_are_an_error(tmp_path, good, bad, message):
    with pytest.raises(DataError, match=f"{message} images cannot be read, first 'bad0.jpg': ."):
        load(write_archive(tmp_path / 'faces.zip', good, bad), tmp_path)
    assert file_names(tmp_path) == ['faces.zip']


@pytest.mark.parametrize('change', ['vanishes', 'grows'])
def test_an_image_that_changes_while_it_is_prepared_is_an_error(tmp_path, two_processes, change):
    folder = tmp_path / 'faces'
    shutil.unpack_archive(write_archive(tmp_path / 'faces.zip', 20), folder)
    source = Source(folder)
    assert len(source.images) == 20
    if change == 'vanishes':
        (folder / '0013.png').unlink()
    else:
        (folder / '0013.png').write_bytes(bytes(1000))
    with pytest.raises(DataError, match='faces/0013.png has changed since it was listed'):
        load_prepared(source, SHAPE, tmp_path / 'cache', read_image)
    assert file_names(tmp_path / 'cache') == [] and len(file_names(folder)) == 19 + (change == 'grows')


def write_entry(archive, name, content, **lies):
    """Add an entry to a zip archive, and replace some of what its directory says about it."""
    archive.writestr(name, content)
    for attribute, value in lies.items():
        setattr(archive.infolist()[-1], attribute, value)


def test_every_kind_of_broken_image_is_left_out_with_its_reason(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(prepared, 'MAX_NAMED', 20)
    picture = encode(np.full((4, 4, 3), 7))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    broken = {
        'truncated.jpg': (encode(noise, 'JPEG')[:2000], {}, 'truncated'),
        'truncated.png': (encode(noise)[:2000], {}, 'truncated'),
        'empty.png': (b'', {}, 'not an image of a known format'),
        'text.jpg': (b'no picture', {}, 'not an image of a known format'),
        'program.jpg': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', {}, 'not an image of a known format'),
        'encrypted.png': (picture, {'flag_bits': 1}, 'encrypted'),
        'unknown.png': (picture, {'compress_type': 99}, 'neither stored nor deflated'),
        'lzma.png': (picture, {'compress_type': zipfile.ZIP_LZMA}, 'neither stored nor deflated'),
        'checksum.png': (picture, {'CRC': 1}, 'CRC'),
        'short.png': (picture, {'file_size': 10}, 'CRC'),
        'elsewhere.png': (picture, {'header_offset': 10**6}, 'magic|header|truncated|Overlapped|offset'),
        'name\n\x1b[31m.png': (b'', {}, 'not an image of a known format'),
    }
    with zipfile.ZipFile(tmp_path / 'faces.zip', 'w') as archive:
        for index in range(1300):
            archive.writestr(f'{index:04}.png', picture)
        for name, (content, lies, _) in broken.items():
            write_entry(archive, name, content, **lies)
    faces = load(tmp_path / 'faces.zip', tmp_path / 'cache')
    assert faces.shape == (1300, 28, 28, 3) and (faces == 7).all()
    out, err = capfd.readouterr()
    lines = err.splitlines()
    for name, (_, _, reason) in broken.items():
        (line,) = (line for line in lines if line.startswith(f'Left out {name!r}: '))
        assert re.search(reason, line), line
    assert out.startswith(f'Left out: {len(broken)} of {1300 + len(broken)} images, which cannot be read (')
    assert len(lines) == len(broken)


def test_missing_files_and_pipes_in_a_folder_do_no_harm(tmp_path, capsys):
    folder = tmp_path / 'faces'
    folder.mkdir()
    for index in range(200):
        (folder / f'{index:03}.png').write_bytes(encode(np.full((4, 4, 3), index)))
    (folder / 'dangling.png').symlink_to('nowhere')
    (folder / 'loop.png').symlink_to('loop.png')
    (folder / 'up').symlink_to('..')
    os.mkfifo(folder / 'pipe.png')
    assert values(load(folder, tmp_path / 'cache')) == list(range(200))
    out, err = capsys.readouterr()
    assert "'dangling.png'" in err and "'loop.png'" in err and '2 of 202 images' in out


def deflated_zeros(size) -> bytes:
    """A deflate stream of `size` zeros, a multiple of 1 MiB, made without compressing them all."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)  # every other block is the same
    return block * (size >> 20) + deflate.flush()


def resized_jpeg(side) -> bytes:
    """A JPEG image that claims to be of another size."""
    jpeg = encode(np.zeros((8, 8, 3)), 'JPEG')
    return jpeg.replace(b'\x00\x08\x00\x08', struct.pack('>HH', side, side))


def test_decompression_bombs_are_left_out_in_bounded_memory(tmp_path):
    size = 2 << 30
    deflated = {'compress_type': zipfile.ZIP_DEFLATED, 'CRC': 0}
    large_png = io.BytesIO()
    Image.new('1', (20000, 20000)).save(large_png, 'PNG')
    with zipfile.ZipFile(tmp_path / 'faces.zip', 'w') as archive:
        for index in range(700):
            archive.writestr(f'{index:04}.png', encode(np.zeros((4, 4, 3))))
        bomb = deflated_zeros(size)
        write_entry(archive, 'entry.png', bomb, file_size=size, **deflated)
        write_entry(archive, 'lying.png', bomb, file_size=1000, **deflated)
        archive.writestr('20000.png', large_png.getvalue(), zipfile.ZIP_DEFLATED)
        archive.writestr('20000.jpg', resized_jpeg(20000))
        archive.writestr('10000.jpg', resized_jpeg(10000))  # Pillow would only warn, and decode it
        archive.writestr('60000.jpg', resized_jpeg(60000))
    code = f'{LOAD}print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))\n'
    command = [sys.executable, '-c', code, tmp_path / 'faces.zip', tmp_path]
    result = subprocess.run(command, stderr=subprocess.PIPE, **PYTHON)
    reasons = dict(re.findall(r"^Left out '([\w.]+)': (.*)$", result.stderr, re.MULTILINE))
    assert reasons['entry.png'] == f'more than {source_module.MAX_BYTES} bytes' and 'CRC' in reasons['lying.png']
    assert reasons['10000.jpg'] == f'10000x10000 is more than {images.MAX_PIXELS} pixels'
    assert 'pixels' in reasons['20000.png'] and 'pixels' in reasons['20000.jpg'] and 'pixels' in reasons['60000.jpg']
    assert len(result.stderr.splitlines()) == 6, result.stderr
    assert int(result.stdout.split()[-1]) < 600_000  # kB


# --- Sources and disks that cannot be used


def test_a_source_that_is_missing_or_without_images_is_an_error(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text').write_text('no archive')
    whole = write_archive(tmp_path / 'faces.zip', 20).read_bytes()
    (tmp_path / 'faces.zip').write_bytes(whole[:-10] + bytes(4) + whole[-6:])  # says that its directory is empty
    (tmp_path / 'loop').symlink_to('loop')
    for name, message in (
        ('empty', 'empty contains no images'),
        ('faces.zip', 'faces.zip contains no images'),
        ('text', 'text is neither a folder nor a readable zip archive'),
        ('missing', 'No such file.*missing'),
        ('loop', 'symbolic links.*loop'),
    ):
        with pytest.raises(OSError, match=message) as error:
            load(tmp_path / name, tmp_path / 'cache')
        assert '\n' not in str(error.value)


@contextlib.contextmanager
def unprivileged():
    """Become a user whom permissions apply to."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.mark.parametrize('unreadable', ['folder', 'folder/below', 'faces.zip', 'hidden/faces.zip'])
def test_an_unreadable_source_is_an_error_that_names_it(unreadable):
    with tempfile.TemporaryDirectory() as folder:  # other users may not look into tmp_path
        folder = Path(folder)
        (folder / 'folder' / 'below').mkdir(parents=True)
        (folder / 'hidden').mkdir()
        (folder / 'folder' / 'a.png').write_bytes(encode(np.zeros((4, 4, 3))))
        write_archive(folder / 'faces.zip', 1)
        closed = folder / (Path(unreadable).parent if unreadable.startswith('hidden') else unreadable)
        folder.chmod(0o755)
        closed.chmod(0)
        source = folder / ('folder' if unreadable.startswith('folder') else unreadable)
        with unprivileged(), pytest.raises(OSError, match=f'Permission denied.*{unreadable}'):
            load(source, folder / 'cache')
        closed.chmod(0o755)


def test_a_full_disk_is_an_error_that_names_the_array_and_leaves_nothing(small_disk, tmp_path):
    archive = write_archive(tmp_path / 'faces.zip', 200)  # 470 kB of faces
    with pytest.raises(OSError) as error:
        load(archive, small_disk / 'prepared')
    assert re.fullmatch(r"\[Errno 28\] No space left on device: '.*faces-28-.*npy'", str(error.value))
    assert file_names(small_disk / 'prepared') == []


def test_a_limit_on_the_size_of_files_is_an_error_that_names_the_array(tmp_path):
    code = (
        'import resource\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n'
        f'try:\n    {LOAD.replace(chr(10), "; ").rstrip("; ")}\n'
        'except OSError as error:\n    print(error)\n'
    )
    archive = write_archive(tmp_path / 'faces.zip', 100)
    result = subprocess.run([sys.executable, '-c', code, archive, tmp_path / 'cache'], **PYTHON)
    assert f'[Errno {errno.EFBIG}]' in result.stdout and 'faces-28-' in result.stdout
    assert file_names(tmp_path / 'cache') == []


# --- Damaged arrays


def npy_header(descr, shape) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {'descr': descr, 'fortran_order': False, 'shape': shape})
    return file.getvalue()


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


DAMAGED_ARRAYS = {
    'empty': lambda whole, trap: b'',
    'without its end': lambda whole, trap: whole[:-1],
    'header alone': lambda whole, trap: whole[:128],
    'half a header': lambda whole, trap: whole[:50],
    'zeros': lambda whole, trap: bytes(len(whole)),
    'malformed header': lambda whole, trap: whole[:10] + b'((' + whole[12:],
    'another shape': lambda whole, trap: npy_header('|u1', (40, 14, 14, 3)) + whole[128:],
    'another type': lambda whole, trap: npy_header('<f2', (20, 28, 28, 3)) + whole[128:],
    'zip': lambda whole, trap: b'PK\x03\x04' + whole,
    'pickle': lambda whole, trap: pickle.dumps(Trap(trap)),
    'pickle in an array': lambda whole, trap: npy_header('|O', (1, 28, 28, 3)) + pickle.dumps(Trap(trap)),
}


@pytest.mark.parametrize('damage', DAMAGED_ARRAYS.values(), ids=DAMAGED_ARRAYS)
def test_a_damaged_array_is_made_again(tmp_path, capsys, damage):
    archive = write_archive(tmp_path / 'faces.zip', 40)
    load(archive, tmp_path / 'cache')
    (path,) = (tmp_path / 'cache').glob('*.npy')
    record = path.with_suffix('.json')
    whole = path.read_bytes()
    path.write_bytes(damage(whole, tmp_path / 'trap'))
    assert values(load(archive, tmp_path / 'cache')) == list(range(40)) and path.read_bytes() == whole
    assert f'{path} is damaged' in capsys.readouterr().err
    assert file_names(tmp_path / 'cache') == [record.name, path.name] and not (tmp_path / 'trap').exists()


# --- Names


def test_names_and_faces_agree_if_a_folder_gets_files_meanwhile(tmp_path):
    folder = tmp_path / 'faces'
    folder.mkdir()

    def read_and_write(file):
        (folder / 'b.png').write_bytes(encode(np.full((4, 4, 3), 9)))
        return read_image(file)

    (folder / 'a.png').write_bytes(encode(np.full((4, 4, 3), 5)))
    loaded = load_prepared(Source(folder), SHAPE, tmp_path / 'cache', read_and_write)
    assert values(loaded.faces) == [5] and loaded.names == ['a.png']
    assert values(load(folder, tmp_path / 'cache')) == [5, 9]
