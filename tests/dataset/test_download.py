"""Downloads from a local server that resumes, drops, stalls, refuses and lies."""

import contextlib
import errno
import hashlib
import http.server
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT
from dataset_helpers import file_names

from common import files
from dataset import DataError
from dataset import download as module
from dataset.download import download

ARCHIVE = b'PK\x03\x04' + bytes(range(256)) * 4000
SIZE, MD5 = len(ARCHIVE), hashlib.md5(ARCHIVE).hexdigest()
PART = 'celeba.zip.part'
MAX_ATTEMPTS = 1 + len(module.WAITS)


class Handler(http.server.BaseHTTPRequestHandler):
    """Calls `server.answer`, set by the test, with this handler and the number of the request, from 1."""

    def do_GET(self):
        self.server.paths.append(self.path)
        self.server.ranges.append(self.headers.get('Range'))
        with contextlib.suppress(ConnectionError):  # the client has closed the connection
            self.server.answer(self, len(self.server.ranges))

    def reply(self, status=200, body=b'', length=None, **headers):
        self.send_response(status)
        self.send_header('Content-Length', str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        self.wfile.write(body)

    def reply_from(self, start, stop=SIZE):
        """Send the archive from `start`, with headers that promise all of it, but only as far as `stop`."""
        headers = {'Content_Range': f'bytes {start}-{SIZE - 1}/{SIZE}'} if start else {}
        self.reply(206 if start else 200, ARCHIVE[start:stop], SIZE - start, **headers)

    def start(self):
        """The first byte that the client asks for."""
        return int(self.headers.get('Range', 'bytes=0-')[6:-1])

    def log_message(self, *_):
        pass


def serve_ranges(handler, number):
    handler.reply_from(handler.start())


def serve_whole(handler, number):
    handler.reply(200, ARCHIVE)


@pytest.fixture
def server(monkeypatch):
    """A server that serves the archive and ranges of it, unless the test sets another `answer`."""
    monkeypatch.setattr(module, 'WAITS', [0.001] * (MAX_ATTEMPTS - 1))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.daemon_threads = True
        server.paths, server.ranges = [], []
        server.answer = serve_ranges
        server.root = f'http://127.0.0.1:{server.server_port}'
        server.url = f'{server.root}/celeba.zip'
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def fetch(folder, *urls):
    return download(folder / 'celeba.zip', urls, SIZE, MD5)


def failed_download(folder, *urls) -> str:
    """The message, one line, of a download that fails."""
    with pytest.raises(DataError) as error:
        fetch(folder, *urls)
    assert '\n' not in str(error.value) and 'manually' in str(error.value)
    return str(error.value)


# --- Resuming


def test_an_archive_is_downloaded_once(tmp_path, server):
    path = fetch(tmp_path / 'data', server.url)
    assert path == tmp_path / 'data' / 'celeba.zip' and path.read_bytes() == ARCHIVE
    assert fetch(tmp_path / 'data', server.url) == path
    assert len(server.ranges) == 1 and file_names(tmp_path / 'data') == ['celeba.zip']


def test_a_file_other_than_a_zip_archive_is_downloaded_too(tmp_path, server):
    table = b'2\r\nSmiling\r\n' * 1000
    server.answer = lambda handler, number: handler.reply(200, table)
    digest = hashlib.md5(table).hexdigest()
    assert download(tmp_path / 'table.txt', [server.url], len(table), digest).read_bytes() == table
    with pytest.raises(DataError, match='not a zip file'):
        download(tmp_path / 'table.zip', [server.url], len(table), digest)


def test_a_partial_file_is_completed(tmp_path, server):
    (tmp_path / PART).write_bytes(ARCHIVE[:1000])
    assert fetch(tmp_path, server.url).read_bytes() == ARCHIVE
    assert server.ranges == ['bytes=1000-']


def test_a_partial_file_is_completed_when_the_next_byte_looks_like_a_page(tmp_path, server):
    (tmp_path / PART).write_bytes(ARCHIVE[: ARCHIVE.index(b'<')])
    assert fetch(tmp_path, server.url).read_bytes() == ARCHIVE


@pytest.mark.parametrize('size', [1000, SIZE])
def test_a_wrong_partial_file_is_replaced(tmp_path, server, size):
    (tmp_path / PART).write_bytes(b'?' * size)
    assert fetch(tmp_path, server.url).read_bytes() == ARCHIVE


def test_a_server_that_ignores_ranges_sends_the_whole_file(tmp_path, server):
    server.answer = serve_whole
    (tmp_path / PART).write_bytes(b'something else')
    assert fetch(tmp_path, server.url).read_bytes() == ARCHIVE


def test_attempts_do_not_run_out_while_each_gets_further(tmp_path, server):
    server.answer = lambda handler, number: handler.reply_from(handler.start(), handler.start() + SIZE // 8 + 1)
    assert fetch(tmp_path, server.url).read_bytes() == ARCHIVE
    assert len(server.ranges) > MAX_ATTEMPTS


def test_a_dropped_connection_is_resumed(tmp_path, server):
    server.answer = lambda handler, number: handler.reply_from(handler.start(), SIZE // 2 if number == 1 else SIZE)
    assert fetch(tmp_path, server.url).read_bytes() == ARCHIVE
    first, second = server.ranges
    assert first is None and 0 < int(second.removeprefix('bytes=').rstrip('-')) <= SIZE // 2


@pytest.mark.parametrize('seed', range(3))
def test_connections_that_drop_at_random_points_bring_the_archive(tmp_path, server, seed):
    rng = random.Random(seed)
    server.answer = lambda handler, number: handler.reply_from(
        handler.start(), handler.start() + rng.randrange(1 << 17, SIZE // 4)
    )
    assert fetch(tmp_path, server.url).read_bytes() == ARCHIVE
    assert len(server.ranges) > 4


def test_a_server_that_drops_and_ignores_ranges_is_given_up(tmp_path, server):
    server.answer = lambda handler, number: handler.reply_from(0, SIZE // (2 + number % 2))  # more and less in turn
    assert 'connection failed' in failed_download(tmp_path, server.url)
    assert len(server.ranges) <= 2 * MAX_ATTEMPTS


def test_a_server_that_stalls_is_given_up_and_its_data_is_kept(tmp_path, server, monkeypatch):
    monkeypatch.setattr(module, 'TIMEOUT', (10, 0.5))
    monkeypatch.setattr(module, 'WAITS', [0.001])
    over = threading.Event()

    def stall(handler, number):
        if number == 1:
            handler.reply_from(0, SIZE // 2)
        over.wait(20)

    server.answer = stall
    assert 'connection failed' in failed_download(tmp_path, server.url)
    over.set()
    received = (tmp_path / PART).read_bytes()
    assert ARCHIVE.startswith(received) and len(received) > SIZE // 4 and len(server.ranges) == 2
    server.answer = serve_ranges
    assert fetch(tmp_path, server.url).read_bytes() == ARCHIVE
    assert server.ranges[-1] == f'bytes={len(received)}-'


# --- Several processes

DOWNLOAD = """
import pathlib, sys
from common import cli
from dataset.download import download
folder, url, size, md5 = sys.argv[1:]
cli.run(lambda: download(pathlib.Path(folder, 'celeba.zip'), [url], int(size), md5))
"""


def other_process(folder, server):
    command = [sys.executable, '-c', DOWNLOAD, str(folder), server.url, str(SIZE), MD5]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_of_two_that_want_an_archive_one_downloads_it_and_the_other_waits(tmp_path, server, monkeypatch, capfd):
    waiting = threading.Event()

    def lock(file, wait=False):
        if wait:
            waiting.set()
        files.lock(file, wait)

    def answer_when_the_other_waits(handler, number):
        waiting.wait(2)
        handler.reply_from(handler.start())

    monkeypatch.setattr(module, 'lock', lock)
    server.answer = answer_when_the_other_waits
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: fetch(tmp_path, server.url), range(2)))
    assert [path.read_bytes() == ARCHIVE for path in paths] == [True, True]
    assert len(server.ranges) == 1 and file_names(tmp_path) == ['celeba.zip']
    assert capfd.readouterr().err == f'Waiting for another process that is downloading {tmp_path / PART}\n'


def test_one_that_waited_downloads_when_the_first_has_failed_or_is_killed(tmp_path, server):
    half, over = threading.Event(), threading.Event()

    def stop_halfway(handler, number):
        if number > 1:
            return serve_ranges(handler, number)
        handler.reply_from(0, SIZE // 2)
        half.set()
        over.wait(20)

    server.answer = stop_halfway
    with other_process(tmp_path, server) as first:
        assert half.wait(20)
        with other_process(tmp_path, server) as second:
            assert second.stderr.readline().startswith('Waiting')
            first.kill()
            assert second.wait(20) == 0
    over.set()
    assert (tmp_path / 'celeba.zip').read_bytes() == ARCHIVE and file_names(tmp_path) == ['celeba.zip']


def test_one_that_waits_can_be_interrupted(tmp_path, server):
    with open(tmp_path / PART, 'ab') as part:
        files.lock(part)
        with other_process(tmp_path, server) as waiting:
            assert waiting.stderr.readline().startswith('Waiting')
            waiting.send_signal(signal.SIGINT)
            assert waiting.wait(20) == 130 and waiting.stderr.read() == ''


@pytest.mark.parametrize('locks', ['none', 'refused'])
def test_without_locks_an_archive_that_has_appeared_meanwhile_is_taken(tmp_path, server, monkeypatch, locks):
    def other_is_faster(handler, number):
        handler.reply_from(0, SIZE - 1)
        while not module.size_of(tmp_path / PART):  # opened later, the file would be emptied under its new name
            time.sleep(0.001)
        (tmp_path / PART).write_bytes(ARCHIVE)
        (tmp_path / PART).rename(tmp_path / 'celeba.zip')

    def refuse(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    if locks == 'none':
        monkeypatch.setattr(module, 'fcntl', None)
    else:
        monkeypatch.setattr(files.fcntl, 'flock', refuse)
    server.answer = other_is_faster
    assert fetch(tmp_path, server.url).read_bytes() == ARCHIVE


# --- Servers that refuse


@pytest.mark.parametrize(
    'status, requests', [(404, 1), (403, 1), (416, MAX_ATTEMPTS), (429, MAX_ATTEMPTS), (503, MAX_ATTEMPTS)]
)
def test_a_status_is_named_and_retried_where_that_may_help(tmp_path, server, status, requests):
    server.answer = lambda handler, number: handler.reply(status)
    assert f'(status {status})' in failed_download(tmp_path, server.url)
    assert len(server.ranges) == requests and file_names(tmp_path) == []


@pytest.mark.parametrize('status', [408, 416, 429, 500, 503])
def test_a_server_may_refuse_once(tmp_path, server, status):
    (tmp_path / PART).write_bytes(ARCHIVE[:1000])
    server.answer = lambda handler, number: handler.reply(status) if number == 1 else serve_ranges(handler, number)
    assert fetch(tmp_path, server.url).read_bytes() == ARCHIVE
    assert server.ranges == ['bytes=1000-', None if status == 416 else 'bytes=1000-']


def test_a_loop_of_redirects_is_followed_once(tmp_path, server):
    server.answer = lambda handler, number: handler.reply(302, Location=server.url)
    assert 'too many redirects' in failed_download(tmp_path, server.url)
    assert len(server.ranges) == 31  # the limit of requests, and no second attempt


ANSWERS = {
    '/html': lambda handler: handler.reply(
        200, b'<!DOCTYPE html><title>Quota exceeded</title>', Content_Type='text/html'
    ),
    '/wrong': lambda handler: handler.reply(200, ARCHIVE[:-1] + b'!'),
    '/missing': lambda handler: handler.reply(404),
    '/whole': lambda handler: handler.reply(200, ARCHIVE),
}


def test_the_next_source_is_tried_when_one_fails(tmp_path, server):
    server.answer = lambda handler, number: ANSWERS[handler.path](handler)
    assert fetch(tmp_path, *(server.root + path for path in ANSWERS)).read_bytes() == ARCHIVE
    assert server.paths == list(ANSWERS)


def test_a_failed_download_says_what_was_tried_and_leaves_no_archive(tmp_path, server):
    server.answer = lambda handler, number: ANSWERS[handler.path](handler)
    dead = 'http://127.0.0.1:1/dead'
    urls = [server.root + path for path in ('/html', '/wrong', '/missing')]
    message = failed_download(tmp_path, *urls, dead)
    for expected in (*urls, 'HTML', 'MD5', '404', 'connection failed', dead, MD5, str(tmp_path / 'celeba.zip')):
        assert expected in message
    assert file_names(tmp_path) == []


def test_an_existing_file_of_another_size_is_neither_used_nor_removed(tmp_path, server):
    (tmp_path / 'celeba.zip').write_bytes(b'mine')
    with pytest.raises(DataError, match='4 bytes'):
        fetch(tmp_path, server.url)
    assert (tmp_path / 'celeba.zip').read_bytes() == b'mine' and server.ranges == []


# --- Servers that lie


def test_data_beyond_the_announced_length_is_ignored(tmp_path, server):
    server.answer = lambda handler, number: handler.reply(200, ARCHIVE + b'more' * 10000, SIZE)
    assert fetch(tmp_path, server.url).read_bytes() == ARCHIVE


def test_an_endless_answer_is_cut_off(tmp_path, server):
    sent = []

    def endless(handler, number):
        handler.send_response(200)
        handler.end_headers()  # no length
        handler.wfile.write(ARCHIVE)
        for _ in range(100):
            handler.wfile.write(ARCHIVE)
            sent.append(SIZE)

    server.answer = endless
    assert 'MD5' in failed_download(tmp_path, server.url)
    assert sum(sent) < 90 * SIZE and file_names(tmp_path) == []


@pytest.mark.parametrize(
    'body, headers, message',
    [
        (ARCHIVE[: SIZE // 2], {}, 'not the archive'),
        (b'<html>', {'Content_Type': 'application/zip'}, 'HTML'),
        (b'', {}, 'not the archive'),
        (ARCHIVE, {'length': 'many'}, 'many'),
        (ARCHIVE, {'Content_Encoding': 'gzip'}, 'connection failed'),
    ],
)
def test_an_answer_that_is_not_the_archive_says_what_it_is(tmp_path, server, body, headers, message):
    server.answer = lambda handler, number: handler.reply(200, body, **headers)
    assert message in failed_download(tmp_path, server.url)
    assert file_names(tmp_path) == []


def test_an_answer_that_is_not_http_is_an_error(tmp_path, server):
    server.answer = lambda handler, number: handler.wfile.write(b'220 mail.example.org ESMTP\r\n\r\n')
    assert 'connection failed' in failed_download(tmp_path, server.url)


# --- Full disks


def test_a_full_disk_is_named_and_the_download_resumes_once_there_is_room(small_disk, server):
    with pytest.raises(OSError, match=f'No space left on device.*{PART}'):
        fetch(small_disk, server.url)
    received = (small_disk / PART).stat().st_size
    assert received > 100_000 and len(server.ranges) == 1
    subprocess.run(['mount', '-o', 'remount,size=4m', small_disk], check=True)
    assert fetch(small_disk, server.url).read_bytes() == ARCHIVE
    assert server.ranges[1] == f'bytes={received}-'
