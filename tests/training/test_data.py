"""What a run trains on: the faces that --data names, and what is noted about them."""

import os
import re
import shutil
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import chosen, encode

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


def test_a_folder_may_be_named_like_a_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, 'load_demo', lambda cache_dir, shape: [])
    (tmp_path / 'demo').mkdir()
    (tmp_path / 'demo' / 'a.png').write_bytes(encode(np.zeros((28, 28, 3))))
    load_dataset(chosen('--data demo --hold-out none')[0])
    assert 'Note: --data demo is not the folder demo, which is --data ./demo\n' in capsys.readouterr().out
    assert len(load_dataset(chosen('--data ./demo --hold-out none')[0]).faces) == 1


def test_runs_and_the_data_directory_below_the_pictures_are_no_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ('a.png', 'b/c.png', 'runs/one/samples/x.png', 'data/y.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode(np.full((28, 28, 3), ord(name[0]))))
    (tmp_path / 'runs' / 'one' / 'run.json').write_text('{}')
    for path, faces in (('.', 2), ('data', 1)):
        for spelling in (path, tmp_path / path, f'../{tmp_path.name}/{path}'):
            dataset = load_dataset(chosen(f'--data {spelling} --data-dir data --hold-out none')[0])
            assert len(dataset.faces) == faces
    assert 'other files: --data-dir (1), folder of results (1)' in capsys.readouterr().out
    assert len(list((tmp_path / 'data' / 'prepared').glob('*.npy'))) == 2


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('kind', ['bare', 'folders', 'prefix'])
@pytest.mark.parametrize('zipped', [False, True])
def test_every_picture_gets_the_labels_of_its_row(tmp_path, seed, kind, zipped):
    # Each picture shows its labels: the attribute in red, the person in green.
    rng = np.random.default_rng(seed)
    folder, rows = tmp_path / 'faces', [('file', 'red', 'other')]
    people = []
    for number in range(30):
        file = f'{"e" + chr(0x301) if seed % 2 else "f"}{number}.png'
        name = ['', 'a/', 'b/c/'][rng.integers(3)] + file
        red, person = rng.integers(2), rng.integers(200)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(np.full((28, 28, 3), [255 * red, person, 0])))
        key = {'bare': file, 'folders': name, 'prefix': name.removeprefix('b/')}[kind]
        key = unicodedata.normalize('NFC', key).replace('/', '/' if seed % 3 else '\\')
        rows.append((key, str(red), str(rng.integers(2))))
        people.append((key, str(person)))
    (folder / 'b').mkdir(exist_ok=True)
    (folder / 'b' / 'broken.png').write_bytes(b'')
    (folder / 'attributes.csv').write_text('\n'.join(map(',;\t'[seed % 3].join, rows)), 'utf-8-sig')
    (folder / 'identity_CelebA.txt').write_text('\n'.join(map(' '.join, rng.permutation(people))))
    path = Path(shutil.make_archive(str(folder), 'zip', folder)) if zipped else folder
    for _ in range(2):
        flags = f'--data {path} --data-dir {tmp_path} --hold-out people --attributes red'
        dataset = load_dataset(chosen(flags)[0])
        assert len(dataset.faces) == 30
        np.testing.assert_array_equal(dataset.conditions[:, 0] > 0, dataset.faces[:, 0, 0, 0] > 0)
        persons = dataset.faces[:, 0, 0, 1]
        assert not set(persons[dataset.training]) & set(persons[dataset.held_out])


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
