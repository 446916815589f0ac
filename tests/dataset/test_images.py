"""Image files: in folders and archives, whole and damaged, of every format and mode, transparent, huge, and tiny."""

import io
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_one_line, encode, run_command
from dataset_helpers import file_names, write_archive
from PIL import Image

from dataset import DataError, images
from dataset.images import MAX_PIXELS, ImageSource, crop_and_resize, open_image

# --- Folders and archives


def test_a_folder_is_searched_with_its_subfolders_in_the_order_of_names(tmp_path):
    (tmp_path / 'b' / 'deep').mkdir(parents=True)
    for name in ('b/d.bmp', 'a.png', 'b/deep/c.JPG', 'notes.txt', '._a.png', '.hidden.png'):
        (tmp_path / name).write_text(name)
    names = ImageSource(tmp_path).names()
    assert names == ['a.png', 'b/d.bmp', 'b/deep/c.JPG']
    assert [ImageSource(tmp_path).read(name) for name in names] == [name.encode() for name in names]


def test_an_archive_is_searched_like_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / 'faces.zip', 'w') as archive:
        archive.writestr('folder.png/', '')
        for name in ('b/d.bmp', 'a.png', 'b/deep/c.JPG', 'notes.txt', '__MACOSX/a.png', 'b/._d.bmp'):
            archive.writestr(name, name)
    names = ImageSource(tmp_path / 'faces.zip').names()
    assert names == ['a.png', 'b/d.bmp', 'b/deep/c.JPG']
    assert [ImageSource(tmp_path / 'faces.zip').read(name) for name in names] == [name.encode() for name in names]


def test_a_file_larger_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(images, 'MAX_BYTES', 100)
    with zipfile.ZipFile(tmp_path / 'faces.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, size in (('allowed.png', 100), ('large.png', 101)):
            archive.writestr(name, bytes(size))
            (tmp_path / name).write_bytes(bytes(size))
    for source in (tmp_path, tmp_path / 'faces.zip'):
        read = ImageSource(source).read
        assert read('allowed.png') == bytes(100)
        with pytest.raises(DataError, match='more than 100 bytes'):
            read('large.png')


@pytest.mark.parametrize('method', [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_compression_without_a_limit_to_its_output_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / 'faces.zip', 'w', method) as archive:
        archive.writestr('a.png', bytes(10))
    with pytest.raises(DataError, match='neither stored nor deflated'):
        ImageSource(tmp_path / 'faces.zip').read('a.png')


def test_names_in_an_archive_are_never_used_as_paths(tmp_path):
    folder = tmp_path / 'a' / 'b'
    folder.mkdir(parents=True)
    names = ['../../up.png', '/tmp/absolute.png', 'C:\\drive.png', f'{tmp_path}/x.png']
    with zipfile.ZipFile(folder / 'faces.zip', 'w') as archive:
        for name in names:
            archive.writestr(name, name)
    source = ImageSource(folder / 'faces.zip')
    assert source.names() == sorted(names)
    assert [source.read(name).decode() for name in names] == names
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
        ImageSource(archive)
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
    assert ImageSource(tmp_path).names() == ['a.png', 'dangling.png', 'loop.png']
    for name in ('dangling.png', 'loop.png'):
        with pytest.raises(OSError, match=name):
            ImageSource(tmp_path).read(name)


# --- Images


def read(file, side) -> np.ndarray:
    """The whole of a square image at another size."""
    with open_image(file) as image:
        return np.asarray(crop_and_resize(image, (0, 0, *image.size), (side, side), min(image.size)))


def color(image: Image.Image, **options) -> tuple[int, ...]:
    """The one color of an image after it was saved and read again."""
    file = io.BytesIO()
    image.save(file, **({'format': 'PNG'} | options))
    pixels = read(file, 4)
    assert pixels.shape == (4, 4, 3) and pixels.dtype == np.uint8 and (pixels == pixels[0, 0]).all()
    return tuple(pixels[0, 0].tolist())


def test_grey_palette_cmyk_and_16_bit_images_become_rgb():
    red = Image.new('RGB', (8, 8), (255, 0, 0))
    assert color(Image.new('L', (8, 8), 77)) == (77, 77, 77)
    assert color(red.convert('P')) == (255, 0, 0)
    assert color(Image.new('CMYK', (8, 8), (0, 255, 255, 0)), format='TIFF') == (255, 0, 0)
    assert color(Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))) == (128, 128, 128)
    assert color(Image.new('1', (8, 8), 1)) == (255, 255, 255)


def test_transparent_parts_become_white():
    assert color(Image.new('RGBA', (8, 8), (255, 0, 0, 0))) == (255, 255, 255)
    assert color(Image.new('RGBA', (8, 8), (255, 0, 0, 255))) == (255, 0, 0)
    assert color(Image.new('LA', (8, 8), (0, 0))) == (255, 255, 255)
    assert color(Image.new('P', (8, 8), 0), transparency=0) == (255, 255, 255)


def test_an_image_is_turned_upright_as_its_exif_data_asks():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG', exif=exif)
    assert (read(file, 8)[0, 7] == 255).all()


def large_png(side) -> bytes:
    """A black PNG image with one bit per pixel."""

    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    header = struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + (side + 7) // 8) * side), 1)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


def test_large_and_tiny_images_within_the_limit_are_read():
    assert read(io.BytesIO(large_png(8192)), 28).max() == 0
    pixels = read(io.BytesIO(encode(np.full((1, 1, 3), 200))), 28)
    assert pixels.shape == (28, 28, 3) and (pixels == 200).all()


def test_an_image_of_too_many_pixels_is_an_error():
    with pytest.raises(DataError, match=f'8193x8193 is more than {MAX_PIXELS} pixels'):
        read(io.BytesIO(large_png(8193)), 28)


@pytest.mark.parametrize('content', [b'', b'text', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n'])
def test_a_file_of_an_unknown_format_is_an_error(content):
    with pytest.raises(DataError, match='not an image of a known format'):
        read(io.BytesIO(content), 28)


def test_only_as_many_pixels_of_a_jpeg_are_decoded_as_are_needed():
    file = io.BytesIO(encode(np.zeros((64, 64, 3)), 'JPEG'))
    for min_side, decoded in ((64, 8), (56, 16), (32, 16), (16, 32), (8, 64)):  # for 8 pixels of min_side
        with open_image(file) as image:
            crop_and_resize(image, (0, 0, 64, 64), (8, 8), min_side)
            assert image.size == (decoded, decoded)
