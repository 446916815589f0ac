"""What a run trains on: the faces that --data names, and what is noted about them."""

import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import chosen

from dataset import source
from training import data
from training.data import load_dataset


def test_celeb_a_is_not_downloaded_where_it_could_not_be_prepared(tmp_path, monkeypatch):
    def download(*_):
        raise AssertionError('the archive was downloaded')

    monkeypatch.setattr(data.helper, 'download_celeb_a', download)
    (tmp_path / 'prepared').write_text('')
    with pytest.raises(OSError, match=f'{tmp_path}/prepared'):
        load_dataset(chosen(f'--data-dir {tmp_path} --hold-out none')[0])


def test_the_demo_says_what_it_is(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(data, 'load_demo', lambda cache_dir, shape: [cache_dir, shape])
    settings, _ = chosen(f'--data demo --data-dir {tmp_path} --system ranjan --hold-out none')
    assert load_dataset(settings).faces == [tmp_path / 'prepared', (64, 64, 3)]
    assert 'none is a photograph' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('flags', 'note'),
    [
        ('--data demo', ''),
        ('--data demo --image-size 64', ''),
        ('--data demo --image-size 128', 'Note: the images are upscaled to 128x128; .* the first is only 64x64\n'),
        ('--data {} --image-size 96', ''),
        ('--data {} --image-size 128x112', 'Note: the images are upscaled to 128x112; .* the first is only 108x94\n'),
    ],
)
def test_a_size_larger_than_the_pictures_is_noted(pictures, tmp_path, monkeypatch, capsys, flags, note):
    monkeypatch.setattr(data, 'load_demo', lambda cache_dir, shape: [cache_dir, shape])
    settings, _ = chosen(f'{flags} --data-dir {tmp_path} --hold-out none'.format(pictures))
    for note_size, expected in ((True, note), (False, '')):
        load_dataset(settings, note_size=note_size)
        assert re.fullmatch(f'{expected}(The demo faces .*\n)?', capsys.readouterr().out)


def test_a_picture_that_cannot_be_read_has_no_size(tmp_path, capsys):
    (tmp_path / 'broken.png').write_bytes(b'no image')
    with pytest.raises(OSError, match='cannot be read'):
        load_dataset(chosen(f'--data {tmp_path} --data-dir {tmp_path} --image-size 64')[0], note_size=True)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('unpacked', [False, True])
def test_pictures_are_opened_and_listed_once(pictures, tmp_path, monkeypatch, unpacked):
    opened = []

    def count(call):
        return lambda path, **options: opened.append(path) or call(path, **options)

    path = Path(shutil.copy(pictures, tmp_path))
    if unpacked:
        shutil.unpack_archive(path, path := tmp_path / 'folder')
    (tmp_path / 'attributes.csv').write_text('file,red\n' + ''.join(f'{n:06}.jpg,{n % 2}\n' for n in range(44)))
    (tmp_path / 'identity_CelebA.txt').write_text(''.join(f'{n:06}.jpg {n // 2}\n' for n in range(44)))
    monkeypatch.setattr(source.zipfile, 'ZipFile', count(zipfile.ZipFile))
    monkeypatch.setattr(source.os, 'walk', count(os.walk))
    flags = f'--data {path} --data-dir {tmp_path} --hold-out people --attributes red'
    dataset = load_dataset(chosen(flags)[0], note_size=True)
    assert dataset.conditions.shape == (44, 1) and len(dataset.held_out) == 4
    assert opened == [path]
