"""Faults injected for real: servers that lie, broken files, full disks, killed processes."""

import contextlib
import errno
import http.server
import io
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_one_line, encode, run_command
from test_helper import ARCHIVE, SIZE, download, files, write_archive

import helper

PART = 'img_align_celeba.zip.part'
PYTHON = {'env': os.environ | {'PYTHONPATH': str(ROOT)}, 'text': True, 'stdout': subprocess.PIPE}


# --- servers that lie


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what the test gave the server: a function of this handler and the number of the request."""

    def do_GET(self):
        self.server.ranges.append(self.headers.get('Range'))
        with contextlib.suppress(ConnectionError):  # the client has heard enough
            self.server.answer(self, len(self.server.ranges))

    def reply(self, status=200, body=b'', length=None, **headers):
        self.send_response(status)
        self.send_header('Content-Length', str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        self.wfile.write(body)

    def reply_from(self, start, stop=SIZE):
        """The archive from `start` on, as if to its end, but broken off at `stop`."""
        headers = {'Content_Range': f'bytes {start}-{SIZE - 1}/{SIZE}'} if start else {}
        self.reply(206 if start else 200, ARCHIVE[start:stop], SIZE - start, **headers)

    def start(self):
        return int(self.headers.get('Range', 'bytes=0-')[6:-1])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(helper, 'BACK_OFF', 0.001)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.daemon_threads = True
        server.ranges = []
        server.answer = lambda handler, number: handler.reply_from(handler.start())
        server.url = f'http://127.0.0.1:{server.server_port}/celeba.zip'
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def failed_download(folder, server) -> str:
    """The one line that a download from `server` ends in."""
    with pytest.raises(helper.DataError) as error:
        download(folder, server.url)
    assert '\n' not in str(error.value) and 'by hand' in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    'status, requests', [(404, 1), (403, 1), (416, helper.ATTEMPTS), (429, helper.ATTEMPTS), (503, helper.ATTEMPTS)]
)
def test_a_status_is_named_and_tried_again_where_that_may_help(tmp_path, server, status, requests):
    server.answer = lambda handler, number: handler.reply(status)
    assert f'(status {status})' in failed_download(tmp_path, server)
    assert len(server.ranges) == requests and files(tmp_path) == []


@pytest.mark.parametrize('status', [408, 416, 429, 500, 503])
def test_a_server_may_refuse_once(tmp_path, server, status):
    (tmp_path / PART).write_bytes(ARCHIVE[:1000])
    rest = server.answer
    server.answer = lambda handler, number: handler.reply(status) if number == 1 else rest(handler, number)
    assert download(tmp_path, server.url).read_bytes() == ARCHIVE
    assert server.ranges == ['bytes=1000-', None if status == 416 else 'bytes=1000-']


def test_redirects_in_a_loop_are_followed_once(tmp_path, server):
    server.answer = lambda handler, number: handler.reply(302, Location=server.url)
    assert 'redirects without end' in failed_download(tmp_path, server)
    assert len(server.ranges) == 31  # requests' limit, and no second attempt


def test_a_server_that_stalls_is_left_and_what_it_gave_is_kept(tmp_path, server, monkeypatch):
    monkeypatch.setattr(helper, 'TIMEOUT', (1, 0.1))
    over = threading.Event()

    def stall(handler, number):
        if number == 1:
            handler.reply_from(0, SIZE // 2)
        over.wait(20)

    server.answer = stall
    assert 'no connection, or it broke off' in failed_download(tmp_path, server)
    over.set()
    got = (tmp_path / PART).read_bytes()
    assert ARCHIVE.startswith(got) and len(got) > SIZE // 4 and len(server.ranges) == helper.ATTEMPTS
    server.answer = lambda handler, number: handler.reply_from(handler.start())
    assert download(tmp_path, server.url).read_bytes() == ARCHIVE
    assert server.ranges[-1] == f'bytes={len(got)}-'


@pytest.mark.parametrize('seed', range(3))
def test_a_connection_that_drops_at_random_points_brings_the_archive(tmp_path, server, seed):
    point = random.Random(seed)
    server.answer = lambda handler, number: handler.reply_from(
        handler.start(), handler.start() + point.randrange(1 << 17, SIZE // 4)
    )
    assert download(tmp_path, server.url).read_bytes() == ARCHIVE
    assert len(server.ranges) > 4


def test_a_server_that_drops_and_ignores_ranges_is_left(tmp_path, server):
    server.answer = lambda handler, number: handler.reply_from(0, SIZE // (2 + number % 2))  # more, less, more, less
    assert 'broke off' in failed_download(tmp_path, server)
    assert len(server.ranges) <= 2 * helper.ATTEMPTS


def test_what_a_server_sends_beyond_its_word_is_not_taken(tmp_path, server):
    server.answer = lambda handler, number: handler.reply(200, ARCHIVE + b'more' * 10000, SIZE)
    assert download(tmp_path, server.url).read_bytes() == ARCHIVE


def test_a_server_that_never_ends_is_cut_off(tmp_path, server):
    sent = []

    def endless(handler, number):
        handler.send_response(200)
        handler.end_headers()  # no length
        handler.wfile.write(ARCHIVE)
        for _ in range(100):
            handler.wfile.write(ARCHIVE)
            sent.append(SIZE)

    server.answer = endless
    assert 'MD5' in failed_download(tmp_path, server)
    assert sum(sent) < 90 * SIZE and files(tmp_path) == []


@pytest.mark.parametrize(
    'body, headers, message',
    [
        (ARCHIVE[: SIZE // 2], {}, 'not the archive'),
        (b'<html>', {'Content_Type': 'application/zip'}, 'HTML'),
        (b'', {}, 'not the archive'),
        (ARCHIVE, {'length': 'many'}, 'many'),
        (ARCHIVE, {'Content_Encoding': 'gzip'}, 'broke off'),
    ],
)
def test_an_answer_that_is_not_the_archive_says_what_it_is(tmp_path, server, body, headers, message):
    server.answer = lambda handler, number: handler.reply(200, body, **headers)
    assert message in failed_download(tmp_path, server)
    assert files(tmp_path) == []


def test_an_answer_that_is_not_http_is_an_error(tmp_path, server):
    server.answer = lambda handler, number: handler.wfile.write(b'220 mail.example.org ESMTP\r\n\r\n')
    assert 'no connection, or it broke off' in failed_download(tmp_path, server)


# --- full disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', folder], stderr=subprocess.PIPE)
    if mounted.returncode:
        pytest.skip('mounting a file system needs root')
    yield folder
    subprocess.run(['umount', '--lazy', folder], check=True)


def test_a_disk_that_fills_up_while_downloading_is_named_and_then_gone_on_with(small_disk, server):
    with pytest.raises(OSError, match=f'No space left on device.*{PART}'):
        download(small_disk, server.url)
    got = (small_disk / PART).stat().st_size
    assert got > 100_000 and len(server.ranges) == 1
    subprocess.run(['mount', '-o', 'remount,size=4m', small_disk], check=True)
    assert download(small_disk, server.url).read_bytes() == ARCHIVE
    assert server.ranges[1] == f'bytes={got}-'


def test_a_disk_that_fills_up_while_preparing_is_named_and_nothing_is_left(small_disk, tmp_path):
    archive = write_archive(tmp_path / 'faces.zip', 200, 0)  # 200 * 28 * 28 * 3 bytes are 470 kB
    result = run_command('train.py', '--data', archive, '--data-dir', small_disk, cwd=tmp_path)
    assert_one_line(result)
    assert files(small_disk / 'prepared') == []
    assert re.fullmatch(r"train.py: error: \[Errno 28\] No space left on device: '.*faces-28-.*npy'\n", result.stderr)


def test_a_file_that_may_not_grow_is_an_error_too(tmp_path):
    code = (
        'import resource, sys, helper\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n'
        'try:\n    helper.load_faces(sys.argv[1], 28, sys.argv[2])\n'
        'except OSError as error:\n    print(error)\n'
    )
    archive = write_archive(tmp_path / 'faces.zip', 100, 0)
    result = subprocess.run([sys.executable, '-c', code, archive, tmp_path / 'cache'], **PYTHON)
    assert f'[Errno {errno.EFBIG}]' in result.stdout and 'faces-28-' in result.stdout
    assert files(tmp_path / 'cache') == []


# --- broken images and archives


def entry(archive, name, content, **lies):
    """Write an entry, and change what the directory of the archive says about it."""
    archive.writestr(name, content)
    for attribute, value in lies.items():
        setattr(archive.infolist()[-1], attribute, value)


def deflated_zeros(size):
    """A deflate stream of `size` zeros, a multiple of 1 MiB, made without compressing them all."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)  # the next would be the same
    return block * (size >> 20) + deflate.flush()


def large_png(side):
    """A whole PNG image, black, one bit a pixel."""

    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    header = struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + (side + 7) // 8) * side), 1)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


def resized_jpeg(side):
    """A JPEG image that says it is of another size."""
    jpeg = encode(np.zeros((8, 8, 3)), 'JPEG')
    return jpeg.replace(b'\x00\x08\x00\x08', struct.pack('>HH', side, side))


def test_every_kind_of_broken_image_is_left_out_with_its_reason(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(helper, 'MOST_NAMED', 20)
    picture = encode(np.full((4, 4, 3), 7))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    broken = {
        'truncated.jpg': (encode(noise, 'JPEG')[:2000], {}, 'truncated'),
        'truncated.png': (encode(noise)[:2000], {}, 'truncated'),
        'empty.png': (b'', {}, 'no image of a known kind'),
        'text.jpg': (b'no picture', {}, 'no image of a known kind'),
        'program.jpg': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', {}, 'no image of a known kind'),
        'encrypted.png': (picture, {'flag_bits': 1}, 'encrypted'),
        'unknown.png': (picture, {'compress_type': 99}, 'neither stored nor deflated'),
        'lzma.png': (picture, {'compress_type': zipfile.ZIP_LZMA}, 'neither stored nor deflated'),
        'checksum.png': (picture, {'CRC': 1}, 'CRC'),
        'short.png': (picture, {'file_size': 10}, 'CRC'),
        'elsewhere.png': (picture, {'header_offset': 10**6}, 'magic|header|truncated|Overlapped|offset'),
        'name\n\x1b[31m.png': (b'', {}, 'no image of a known kind'),
    }
    with zipfile.ZipFile(tmp_path / 'faces.zip', 'w') as archive:
        for number in range(1300):
            archive.writestr(f'{number:04}.png', picture)
        for name, (content, lies, _) in broken.items():
            entry(archive, name, content, **lies)
    faces = helper.load_faces(tmp_path / 'faces.zip', 28, tmp_path / 'cache')
    assert faces.shape == (1300, 28, 28, 3) and (faces == 7).all()
    lines = capfd.readouterr().err.splitlines()
    for name, (_, _, why) in broken.items():
        (line,) = (line for line in lines if line.startswith(f'Left out {name!r}: '))
        assert re.search(why, line), line
    assert lines[-1] == f'{len(broken)} of {1300 + len(broken)} images could not be read and were left out'
    assert len(lines) == len(broken) + 1


def test_only_the_first_unreadable_images_are_named(tmp_path, capsys):
    assert len(helper.load_faces(write_archive(tmp_path / 'faces.zip', 1485, 15), 4, tmp_path)) == 1485
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == helper.MOST_NAMED + 1 and lines[-1].startswith('15 of 1500 images')


def test_bombs_are_left_out_in_bounded_memory(tmp_path):
    size = 2 << 30
    deflated = {'compress_type': zipfile.ZIP_DEFLATED, 'CRC': 0}
    with zipfile.ZipFile(tmp_path / 'faces.zip', 'w') as archive:
        for number in range(700):
            archive.writestr(f'{number:04}.png', encode(np.zeros((4, 4, 3))))
        bomb = deflated_zeros(size)
        entry(archive, 'entry.png', bomb, file_size=size, **deflated)
        entry(archive, 'lying.png', bomb, file_size=1000, **deflated)
        archive.writestr('20000.png', large_png(20000), zipfile.ZIP_DEFLATED)
        archive.writestr('20000.jpg', resized_jpeg(20000))
        archive.writestr('10000.jpg', resized_jpeg(10000))  # Pillow would warn, and decode it
        archive.writestr('60000.jpg', resized_jpeg(60000))
    code = (
        'import sys, helper\n'
        'helper.load_faces(sys.argv[1], 28, sys.argv[2])\n'
        'print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code, tmp_path / 'faces.zip', tmp_path], stderr=subprocess.PIPE, **PYTHON
    )
    reasons = dict(re.findall(r"^Left out '([\w.]+)': (.*)$", result.stderr, re.MULTILINE))
    assert reasons['entry.png'] == f'more than {helper.MOST_BYTES} bytes' and 'CRC' in reasons['lying.png']
    assert reasons['10000.jpg'] == f'10000x10000 are more than {helper.MOST_PIXELS} pixels'
    assert 'pixels' in reasons['20000.png'] and 'pixels' in reasons['20000.jpg'] and 'pixels' in reasons['60000.jpg']
    assert len(result.stderr.splitlines()) == 7, result.stderr
    assert int(result.stdout) < 600_000  # kB


def test_large_and_tiny_images_within_the_limits_are_read(tmp_path):
    assert helper.get_image(io.BytesIO(large_png(8192)), 28, 28).max() == 0
    face = helper.get_image(io.BytesIO(encode(np.full((1, 1, 3), 200))), 28, 28)
    assert face.shape == (28, 28, 3) and (face == 200).all()


def test_names_in_an_archive_are_never_names_of_files(tmp_path):
    folder = tmp_path / 'a' / 'b'
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / 'faces.zip', 'w') as archive:
        for value, name in enumerate(('../../up.png', '/tmp/absolute.png', 'C:\\drive.png', f'{tmp_path}/x.png')):
            archive.writestr(name, encode(np.full((4, 4, 3), value)))
    faces = helper.load_faces(folder / 'faces.zip', 28, folder)
    assert sorted(faces[:, 0, 0, 0].tolist()) == [0, 1, 2, 3]
    assert files(tmp_path) == ['a'] and files(tmp_path / 'a') == ['b'] and len(files(folder)) == 2
    assert not Path('/tmp/absolute.png').exists()


def without_directory(archive, directory):
    end = archive.index(b'PK\x05\x06')
    return archive[:directory] + bytes(end - directory) + archive[end:]


def with_a_name_that_is_no_text(archive, directory):
    archive = bytearray(archive)
    archive[directory + 9] |= 8  # the name is UTF-8, it says
    archive[directory + 46] = 0xFF
    return bytes(archive)


BROKEN_ARCHIVES = {
    'truncated': lambda archive, directory: archive[: len(archive) // 2],
    'without its beginning': lambda archive, directory: archive[directory + 10 :],
    'without its directory': without_directory,
    'directory of no size': lambda archive, directory: archive[:-10] + bytes(4) + archive[-6:],
    'name that is no text': with_a_name_that_is_no_text,
    'page': lambda archive, directory: b'<!DOCTYPE html><title>Quota exceeded</title>',
    'nothing': lambda archive, directory: b'',
}


@pytest.mark.parametrize('broken', BROKEN_ARCHIVES.values(), ids=BROKEN_ARCHIVES)
def test_a_damaged_archive_is_an_error(tmp_path, broken):
    whole = write_archive(tmp_path / 'whole.zip', 20, 0).read_bytes()
    (tmp_path / 'faces.zip').write_bytes(broken(whole, whole.index(b'PK\x01\x02')))
    with pytest.raises(helper.DataError, match='faces.zip') as error:
        helper.load_faces(tmp_path / 'faces.zip', 28, tmp_path)
    assert '\n' not in str(error.value)


def test_the_command_names_a_fault_in_one_line(tmp_path):
    (tmp_path / 'faces.zip').write_text('<html>')
    result = run_command('train.py', '--data', 'faces.zip', cwd=tmp_path)
    assert_one_line(result)
    assert result.stdout == ''
    assert re.fullmatch(r'train.py: error: \S*faces.zip is neither a folder nor a zip archive .*\n', result.stderr)


# --- paths


def test_a_loop_of_links_is_an_error(tmp_path):
    (tmp_path / 'loop').symlink_to('loop')
    with pytest.raises(OSError, match='symbolic links.*loop'):
        helper.load_faces(tmp_path / 'loop', 28, tmp_path)


def test_links_and_pipes_in_a_folder_do_no_harm(tmp_path, capsys):
    folder = tmp_path / 'faces'
    folder.mkdir()
    for number in range(200):
        (folder / f'{number:03}.png').write_bytes(encode(np.full((4, 4, 3), number)))
    (folder / 'dangling.png').symlink_to('nowhere')
    (folder / 'loop.png').symlink_to('loop.png')
    (folder / 'up').symlink_to('..')
    (folder / 'folder.png').symlink_to('.')
    os.mkfifo(folder / 'pipe.png')  # whoever opens it waits for ever
    faces = helper.load_faces(folder, 28, tmp_path / 'cache')
    assert faces[:, 0, 0, 0].tolist() == list(range(200))
    error = capsys.readouterr().err
    assert "'dangling.png'" in error and "'loop.png'" in error and '2 of 202 images' in error


@contextlib.contextmanager
def unprivileged():
    """As a user for whom permissions count."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.mark.parametrize('what', ['folder', 'folder/below', 'faces.zip', 'hidden/faces.zip'])
def test_what_may_not_be_read_is_an_error_that_names_it(what):
    with tempfile.TemporaryDirectory() as folder:  # tmp_path lies where others may not look
        folder = Path(folder)
        (folder / 'folder' / 'below').mkdir(parents=True)
        (folder / 'hidden').mkdir()
        (folder / 'folder' / 'a.png').write_bytes(encode(np.zeros((4, 4, 3))))
        write_archive(folder / 'faces.zip', 1, 0)
        closed = folder / (Path(what).parent if what.startswith('hidden') else what)
        folder.chmod(0o755)
        closed.chmod(0)
        source = folder / ('folder' if what.startswith('folder') else what)
        with unprivileged(), pytest.raises(OSError, match=f'Permission denied.*{what}'):
            helper.load_faces(source, 28, folder / 'cache')
        closed.chmod(0o755)


# --- the prepared array


def header(descr, shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {'descr': descr, 'fortran_order': False, 'shape': shape})
    return file.getvalue()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


DAMAGES = {
    'empty': lambda whole, trap: b'',
    'without its end': lambda whole, trap: whole[:-1],
    'header alone': lambda whole, trap: whole[:128],
    'half a header': lambda whole, trap: whole[:50],
    'zeros': lambda whole, trap: bytes(len(whole)),
    'strange header': lambda whole, trap: whole[:10] + b'((' + whole[12:],
    'another size': lambda whole, trap: header('|u1', (40, 14, 14, 3)) + whole[128:],
    'another kind': lambda whole, trap: header('<f2', (20, 28, 28, 3)) + whole[128:],
    'zip': lambda whole, trap: b'PK\x03\x04' + whole,
    'pickle': lambda whole, trap: pickle.dumps(Trap(trap)),
    'pickle in an array': lambda whole, trap: header('|O', (1, 28, 28, 3)) + pickle.dumps(Trap(trap)),
}


@pytest.mark.parametrize('damaged', DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_prepared_array_is_made_anew(tmp_path, capsys, damaged):
    archive = write_archive(tmp_path / 'faces.zip', 40, 0)
    helper.load_faces(archive, 28, tmp_path / 'cache')
    (prepared,) = (tmp_path / 'cache').iterdir()
    whole = prepared.read_bytes()
    prepared.write_bytes(damaged(whole, tmp_path / 'trap'))
    faces = helper.load_faces(archive, 28, tmp_path / 'cache')
    assert faces[:, 0, 0, 0].tolist() == list(range(40)) and prepared.read_bytes() == whole
    assert f'{prepared} is damaged' in capsys.readouterr().err
    assert files(tmp_path / 'cache') == [prepared.name] and not (tmp_path / 'trap').exists()


def test_two_processes_may_prepare_the_same_array_at_once(tmp_path):
    archive = write_archive(tmp_path / 'faces.zip', 1000, 0)
    code = (
        'import sys, helper\n'
        'print("ready", flush=True)\n'
        'sys.stdin.readline()\n'
        'print(helper.load_faces(sys.argv[1], 28, sys.argv[2])[:, 0, 0, 0].tolist())\n'
    )
    command = [sys.executable, '-c', code, archive, tmp_path / 'cache']
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, **PYTHON) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ['ready\n'] * 2
    for process in processes:
        process.stdin.write('\n')
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=20)[0] == f'{[number % 256 for number in range(1000)]}\n'
    assert len(files(tmp_path / 'cache')) == 1


def test_what_a_killed_process_left_is_removed_and_nothing_of_a_living_one(tmp_path):
    code = (
        'import pathlib, sys, time, helper\n'
        'with helper.replacing(pathlib.Path(sys.argv[1])) as temporary, open(temporary, "wb") as file:\n'
        '    file.write(b"half")\n'
        '    print(temporary.name, flush=True)\n'
        '    time.sleep(60)\n'
    )
    other = subprocess.Popen([sys.executable, '-c', code, tmp_path / 'array.npy'], **PYTHON)
    left = other.stdout.readline().strip()
    assert re.fullmatch(r'\.\w{32}\.array\.npy', left)
    mine = tmp_path / '.hidden.npy'
    mine.touch()
    for alive, expected in ((True, [left, mine.name, 'grid.png']), (False, [mine.name, 'grid.png'])):
        if not alive:
            other.kill()
            other.communicate()
        with helper.replacing(tmp_path / 'grid.png') as temporary:
            temporary.write_bytes(b'whole')
        assert files(tmp_path) == sorted(expected)
