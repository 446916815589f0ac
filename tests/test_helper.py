import hashlib
import http.server
import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
from conftest import ROOT, celeb_a, encode
from PIL import Image

import helper

# --- the crop


def test_crop_of_178x218_is_the_central_108x108(tmp_path):
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[55:163, 35:143] = (10, 200, 90)  # rows (218 - 108) / 2, columns (178 - 108) / 2
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    face = helper.get_image(tmp_path / 'image.png', 28, 28)
    assert face.shape == (28, 28, 3) and face.dtype == np.uint8
    assert (face == (10, 200, 90)).all()
    pixels[55, 35] = pixels[162, 142] = 0  # the corners of the box count
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    face = helper.get_image(tmp_path / 'image.png', 108, 108)
    assert (face[0, 0] == 0).all() and (face[-1, -1] == 0).all() and (face != (10, 200, 90)).any(axis=2).sum() == 2


def test_crop_of_half_resolution_is_the_central_54x54(tmp_path):
    pixels = np.arange(109 * 89 * 3).reshape(109, 89, 3).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    np.testing.assert_array_equal(helper.get_image(tmp_path / 'image.png', 54, 54), pixels[27:81, 17:71])


@pytest.mark.parametrize(
    'height, width, crop, rows, columns',
    [
        (218, 178, 178, slice(20, 198), slice(0, 178)),  # (218 - 178) / 2
        (109, 89, 178, slice(10, 99), slice(0, 89)),
        (218, 178, 100, slice(59, 159), slice(39, 139)),
        (436, 356, 50, slice(168, 268), slice(128, 228)),  # of a picture twice as large twice the crop
        (218, 178, 1, slice(108, 109), slice(88, 89)),
        (218, 177, 50, slice(20, 197), slice(0, 177)),  # no aligned image: the largest square, as without a crop
    ],
)
def test_another_crop_of_an_aligned_image_is_the_central_square_of_that_side(
    tmp_path, height, width, crop, rows, columns
):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    expected = pixels[rows, columns]
    face = helper.get_image(tmp_path / 'image.png', *expected.shape[1::-1], crop=crop)
    np.testing.assert_array_equal(face, expected)


@pytest.mark.parametrize('width, height', [(60, 40), (40, 60), (40, 40), (1, 1), (3000, 1)])
def test_crop_of_any_other_image_is_the_central_square(tmp_path, width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    face = helper.get_image(tmp_path / 'image.png', side, side)
    np.testing.assert_array_equal(face, pixels[top : top + side, left : left + side])


def published_crop(image):
    return np.asarray(image.crop((35, 55, 143, 163)).resize((28, 28), Image.Resampling.BILINEAR))


def test_crop_of_real_full_size_faces_is_the_published_one(tmp_path):
    files = sorted(celeb_a('CELEBA_FULL_SIZE').glob('*.jpg'))
    assert len(files) == 10
    differences = []
    for file in files:
        with Image.open(file) as image:
            published = published_crop(image)
            image.save(tmp_path / 'whole.png')
        np.testing.assert_array_equal(helper.get_image(tmp_path / 'whole.png', 28, 28), published)
        differences.append(helper.get_image(file, 28, 28).astype(int) - published)  # decoded at half the size
    differences = np.abs(differences)
    assert 0 < differences.mean() < 1 and (differences > 8).mean() < 0.01


@pytest.mark.parametrize('crop, most', [(108, 1), (178, 1.5)])  # the larger the crop, the smaller it is decoded
def test_a_jpeg_decoded_at_reduced_size_shows_the_same_crop(tmp_path, crop, most):
    rng = np.random.default_rng(0)
    for width, height in ((178, 218), (181, 222), (1000, 700), (700, 1001), (267, 327)):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        picture = small.resize((width, height), Image.Resampling.BICUBIC)
        for exif_rotation in (1, 6):
            exif = Image.Exif()
            exif[0x0112] = exif_rotation
            picture.save(tmp_path / 'image.jpg', quality=100, subsampling=0, exif=exif)
            picture.save(tmp_path / 'image.png', exif=exif)
            reduced, whole = (
                helper.get_image(tmp_path / f'image.{kind}', 28, 28, crop).astype(int) for kind in ('jpg', 'png')
            )
            assert np.abs(reduced - whole).mean() < most, (width, height, exif_rotation)


def test_real_archive_becomes_its_published_crops(tmp_path):
    faces = helper.load_faces(celeb_a('CELEBA_ZIP'), 28, tmp_path)
    with zipfile.ZipFile(celeb_a('CELEBA_ZIP')) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith('.jpg'))
        assert faces.shape == (len(names), 28, 28, 3)
        for number in range(0, len(names), 500):
            with Image.open(io.BytesIO(archive.read(names[number]))) as image:
                side = image.width * 108 // 178
                left, top = (image.width - side) // 2, (image.height - side) // 2
                crop = image.crop((left, top, left + side, top + side)).resize((28, 28), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(faces[number], np.asarray(crop))


# --- kinds of images


def colour(image: Image.Image, **options):
    """The one colour of `image` after it was saved as a file and read by `get_image`."""
    file = io.BytesIO()
    image.save(file, **({'format': 'PNG'} | options))
    face = helper.get_image(file, 4, 4)
    assert face.shape == (4, 4, 3) and (face == face[0, 0]).all()
    return tuple(int(value) for value in face[0, 0])


def test_grey_palette_cmyk_and_16_bit_images_become_rgb():
    red = Image.new('RGB', (8, 8), (255, 0, 0))
    assert colour(Image.new('L', (8, 8), 77)) == (77, 77, 77)
    assert colour(red.convert('P')) == (255, 0, 0)
    assert colour(Image.new('CMYK', (8, 8), (0, 255, 255, 0)), format='TIFF') == (255, 0, 0)
    assert colour(Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))) == (128, 128, 128)
    assert colour(Image.new('1', (8, 8), 1)) == (255, 255, 255)


def test_transparent_parts_become_white():
    assert colour(Image.new('RGBA', (8, 8), (255, 0, 0, 0))) == (255, 255, 255)
    assert colour(Image.new('RGBA', (8, 8), (255, 0, 0, 255))) == (255, 0, 0)
    assert colour(Image.new('LA', (8, 8), (0, 0))) == (255, 255, 255)
    assert colour(Image.new('P', (8, 8), 0), transparency=0) == (255, 255, 255)


def test_rotation_by_exif_is_applied():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG', exif=exif)
    assert (helper.get_image(file, 8, 8)[0, 7] == 255).all()


# --- sources and the prepared array


def test_folder_is_searched_to_the_bottom_in_the_order_of_names(tmp_path):
    source = tmp_path / 'faces'
    (source / 'b' / 'deep').mkdir(parents=True)
    for name, value in (('a.png', 1), ('b/deep/c.JPG', 2), ('b/d.bmp', 3)):
        Image.new('RGB', (9, 9), (value, value, value)).save(source / name, 'BMP')
    (source / 'notes.txt').write_text('no image')
    (source / '._a.png').write_text('what macOS leaves behind')
    faces = helper.load_faces(source, 28, tmp_path / 'cache')
    assert faces.shape == (3, 28, 28, 3) and faces.dtype == np.uint8
    assert faces[:, 0, 0, 0].tolist() == [1, 3, 2]  # a.png, b/d.bmp, b/deep/c.JPG


def test_archive_and_folder_give_the_same_faces(tmp_path, pictures):
    with zipfile.ZipFile(pictures) as archive:
        archive.extractall(tmp_path / 'folder')
    from_folder = helper.load_faces(tmp_path / 'folder', 28, tmp_path / 'cache')
    from_archive = helper.load_faces(pictures, 28, tmp_path / 'cache')
    assert len(from_archive) == 44
    np.testing.assert_array_equal(from_archive, from_folder)


def test_second_start_reads_no_image(tmp_path, pictures, monkeypatch):
    first = helper.load_faces(pictures, 28, tmp_path)
    monkeypatch.setattr(helper, 'get_image', None)
    np.testing.assert_array_equal(helper.load_faces(pictures, 28, tmp_path), first)


def test_changed_source_or_size_makes_a_new_array(tmp_path):
    source = tmp_path / 'faces'
    source.mkdir()
    (source / 'a.png').write_bytes(encode(np.full((9, 9, 3), 5)))
    assert helper.load_faces(source, 28, tmp_path / 'cache')[0, 0, 0, 0] == 5
    (source / 'a.png').write_bytes(encode(np.full((9, 9, 3), 60)))
    assert helper.load_faces(source, 28, tmp_path / 'cache')[0, 0, 0, 0] == 60
    (source / 'b.png').write_bytes(encode(np.full((9, 9, 3), 70)))
    assert len(helper.load_faces(source, 28, tmp_path / 'cache')) == 2
    assert helper.load_faces(source, 64, tmp_path / 'cache').shape == (2, 64, 64, 3)


def test_another_crop_has_a_prepared_array_of_its_own(tmp_path, pictures):
    narrow, wide = (helper.load_faces(pictures, 28, tmp_path, crop) for crop in (108, 178))
    assert len(list(tmp_path.iterdir())) == 2 and (narrow != wide).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(helper.load_faces(pictures, 28, tmp_path), narrow)
    np.testing.assert_array_equal(helper.load_faces(pictures, 28, tmp_path, 178), wide)
    assert len(list(tmp_path.iterdir())) == 2


def test_many_images_are_decoded_by_several_processes_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(helper.os, 'cpu_count', lambda: 2)
    monkeypatch.setattr(helper, 'LEAST_CHUNKS', 2)
    monkeypatch.setattr(helper, 'CHUNK', 8)
    archive = write_archive(tmp_path / 'faces.zip', 200, 2)
    assert helper.load_faces(archive, 28, tmp_path, crop=178)[:, 0, 0, 0].tolist() == list(range(200))
    assert '2 of 202 images' in capsys.readouterr().err


def test_a_killed_decoding_process_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(helper, 'LEAST_CHUNKS', 1)
    monkeypatch.setattr(helper.os, 'cpu_count', lambda: 2)
    monkeypatch.setattr(helper, 'decode_in_worker', kill_oneself)
    with pytest.raises(helper.DataError, match='was killed'):
        helper.load_faces(write_archive(tmp_path / 'faces.zip', 20, 0), 28, tmp_path)
    assert files(tmp_path) == ['faces.zip']


def test_decoding_processes_end_with_the_one_that_started_them(tmp_path):
    code = (
        'import sys, time, multiprocessing, helper\n'
        'from concurrent.futures import ProcessPoolExecutor\n'
        'if __name__ == "__main__":\n'
        '    spawn = multiprocessing.get_context("spawn")\n'
        '    pool = ProcessPoolExecutor(1, spawn, helper.begin_worker)\n'
        '    print(pool.submit(helper.os.getpid).result(), flush=True)\n'
        '    time.sleep(60)\n'
    )
    (tmp_path / 'parent.py').write_text(code)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / 'parent.py'], env=os.environ | {'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE
    )
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)  # it is there
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(worker, 0)
            time.sleep(0.05)


def test_interrupted_preparation_leaves_nothing(tmp_path, pictures, monkeypatch):
    def interrupted(*_):
        yield np.zeros((7, 28, 28, 3), np.uint8)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(helper, 'read_faces', interrupted)
        with pytest.raises(KeyboardInterrupt):
            helper.load_faces(pictures, 28, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(helper.load_faces(pictures, 28, tmp_path)) == 44


def kill_oneself(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def write_archive(path, good, bad):
    with zipfile.ZipFile(path, 'w') as archive:
        for number in range(good):
            archive.writestr(f'{number:04}.png', encode(np.full((4, 4, 3), number % 256)))
        for number in range(bad):
            archive.writestr(f'bad{number}.jpg', b'\xff\xd8\xff no picture')
    return path


def test_unreadable_images_are_left_out_counted_and_named(tmp_path, capsys):
    faces = helper.load_faces(write_archive(tmp_path / 'faces.zip', 199, 2), 28, tmp_path)
    assert len(faces) == 199 and faces[7, 0, 0, 0] == 7 and faces[198, 0, 0, 0] == 198
    error = capsys.readouterr().err
    assert 'bad0.jpg' in error and 'bad1.jpg' in error and '2 of 201 images' in error


@pytest.mark.parametrize('good, bad', [(150, 2), (0, 3)])
def test_more_than_one_percent_unreadable_is_an_error(tmp_path, good, bad):
    with pytest.raises(helper.DataError, match=f'more than 1% of its {good + bad} images cannot be read'):
        helper.load_faces(write_archive(tmp_path / 'faces.zip', good, bad), 28, tmp_path)
    assert list(tmp_path.glob('*.npy')) == []


def test_source_without_images_or_not_there_is_an_error(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text').write_text('no archive')
    for name, message in (('empty', 'no images'), ('text', 'neither'), ('missing', 'No such file.*missing')):
        with pytest.raises(OSError, match=message):
            helper.load_faces(tmp_path / name, 28, tmp_path)


# --- batches and grids


def test_a_batch_is_the_faces_as_they_are_stored():
    faces = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1) * np.ones((1, 2, 2, 3), np.uint8)
    batch = helper.get_batch(faces, [2, 0, 1])
    assert batch.dtype == np.uint8 and batch.shape == (3, 2, 2, 3)
    assert batch[:, 0, 0, 0].tolist() == [255, 0, 51]


def test_an_epoch_shows_every_face_once_in_an_order_of_seed_and_epoch():
    faces = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1) * np.ones((1, 1, 1, 3), np.uint8)

    def order(seed, epoch, start=0):
        batches = list(helper.get_batches(faces, 8, seed, epoch, start))
        assert all(len(batch) == 8 for batch in batches)
        return [int(value) for batch in batches for value in batch[:, 0, 0, 0]]

    assert len(order(0, 0)) == len(set(order(0, 0))) == 88  # of 90: every tenth is held out
    assert {number % 10 for number in order(0, 0)} == set(range(9))
    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)
    assert order(0, 1) != sorted(order(0, 1))
    assert order(0, 0, start=5) == order(0, 0)[40:]


@pytest.mark.parametrize('count, held_out', [(0, []), (9, []), (10, [9]), (35, [9, 19, 29])])
def test_every_tenth_face_is_held_out(count, held_out):
    trained, out = helper.split(count)
    assert out.tolist() == held_out and sorted([*trained, *out]) == list(range(count))


def test_grid_runs_left_to_right_with_a_fixed_scale():
    values = np.array([-0.5, -0.25, 0.0, 0.5, 0.9], np.float32)
    images = values.reshape(5, 1, 1, 1) * np.ones((1, 2, 2, 3), np.float32)
    grid = np.asarray(helper.images_square_grid(images, (-0.5, 0.5)))
    assert grid.shape == (4, 6, 3)  # 3 columns, 2 rows
    assert grid[0, ::2, 0].tolist() == [0, 64, 128] and grid[2, ::2, 0].tolist() == [255, 255, 0]
    generated = np.asarray(helper.images_square_grid(images, (-1, 1)))
    assert generated[0, ::2, 0].tolist() == [64, 96, 128]


# --- the download, from a server of our own

ARCHIVE = b'PK\x03\x04' + bytes(range(256)) * 4000
SIZE, MD5 = len(ARCHIVE), hashlib.md5(ARCHIVE).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """/whole and /ranges serve the archive, /drop half of it first, /eighths an eighth at a time, /wrong another one,
    /html a page, /busy one 503 first."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get('Range')))
        seen = sum(path == self.path for path, _ in self.server.requests)
        start, status, body, kind = 0, 200, ARCHIVE, 'application/zip'
        if self.path == '/html':
            body, kind = b'<!DOCTYPE html><title>Quota exceeded</title>', 'text/html; charset=utf-8'
        elif self.path == '/wrong':
            body = ARCHIVE[:-1] + b'!'
        elif self.path == '/missing' or (self.path == '/busy' and seen == 1):
            status, body = (404 if self.path == '/missing' else 503), b''
        elif self.headers.get('Range') and self.path != '/whole':
            start, status = int(self.headers['Range'].removeprefix('bytes=').rstrip('-')), 206
        self.send_response(status)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(body) - start))
        if status == 206:
            self.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        self.end_headers()
        body = body[start:]
        if self.path == '/drop' and seen == 1:
            body = body[: len(body) // 2]
        self.wfile.write(body[: SIZE // 8 + 1] if self.path == '/eighths' else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(helper, 'BACK_OFF', 0.01)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.requests = []
        server.url = f'http://127.0.0.1:{server.server_port}'
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def download(folder, *sources):
    return helper.download_celeb_a(folder, sources, size=SIZE, md5=MD5)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download_of_a_whole_archive_happens_once(tmp_path, server):
    archive = download(tmp_path / 'data', f'{server.url}/whole')
    assert archive == tmp_path / 'data' / 'img_align_celeba.zip' and archive.read_bytes() == ARCHIVE
    assert download(tmp_path / 'data', f'{server.url}/whole') == archive
    assert len(server.requests) == 1 and files(tmp_path / 'data') == ['img_align_celeba.zip']


def test_download_resumes_a_partial_file(tmp_path, server):
    (tmp_path / 'img_align_celeba.zip.part').write_bytes(ARCHIVE[:1000])
    assert download(tmp_path, f'{server.url}/ranges').read_bytes() == ARCHIVE
    assert server.requests == [('/ranges', 'bytes=1000-')]


def test_download_resumes_where_the_next_byte_could_begin_a_page(tmp_path, server):
    (tmp_path / 'img_align_celeba.zip.part').write_bytes(ARCHIVE[: ARCHIVE.index(b'<')])
    assert download(tmp_path, f'{server.url}/ranges').read_bytes() == ARCHIVE


@pytest.mark.parametrize('size', [1000, SIZE])
def test_download_heals_a_wrong_partial_file(tmp_path, server, size):
    (tmp_path / 'img_align_celeba.zip.part').write_bytes(b'?' * size)
    assert download(tmp_path, f'{server.url}/ranges').read_bytes() == ARCHIVE


def test_download_goes_on_as_long_as_each_attempt_brings_something(tmp_path, server):
    assert download(tmp_path, f'{server.url}/eighths').read_bytes() == ARCHIVE
    assert len(server.requests) > helper.ATTEMPTS


def test_download_begins_again_where_the_server_ignores_ranges(tmp_path, server):
    (tmp_path / 'img_align_celeba.zip.part').write_bytes(b'something else')
    assert download(tmp_path, f'{server.url}/whole').read_bytes() == ARCHIVE


def test_download_goes_on_after_a_dropped_connection(tmp_path, server):
    assert download(tmp_path, f'{server.url}/drop').read_bytes() == ARCHIVE
    (_, first), (_, second) = server.requests
    assert first is None and 0 < int(second.removeprefix('bytes=').rstrip('-')) <= SIZE // 2


def test_download_tries_again_when_the_server_is_busy(tmp_path, server):
    assert download(tmp_path, f'{server.url}/busy').read_bytes() == ARCHIVE
    assert len(server.requests) == 2


def test_download_takes_the_next_source_when_one_fails(tmp_path, server):
    sources = (f'{server.url}/{path}' for path in ('html', 'wrong', 'missing', 'whole'))
    assert download(tmp_path, *sources).read_bytes() == ARCHIVE
    assert [path for path, _ in server.requests] == ['/html', '/wrong', '/missing', '/whole']


def test_download_that_fails_says_what_was_tried_and_leaves_nothing_that_looks_whole(tmp_path, server):
    dead = 'http://127.0.0.1:1/dead'
    with pytest.raises(helper.DataError) as error:
        download(tmp_path, f'{server.url}/html', f'{server.url}/wrong', f'{server.url}/missing', dead)
    message = str(error.value)
    for part in ('HTML', 'MD5', '404', 'no connection', dead, str(tmp_path / 'img_align_celeba.zip')):
        assert part in message
    assert '\n' not in message and files(tmp_path) == []


def test_a_file_of_the_archives_name_that_is_not_whole_is_neither_used_nor_removed(tmp_path, server):
    (tmp_path / 'img_align_celeba.zip').write_bytes(b'mine')
    with pytest.raises(helper.DataError, match='4 bytes'):
        download(tmp_path, f'{server.url}/whole')
    assert (tmp_path / 'img_align_celeba.zip').read_bytes() == b'mine'
