"""What a run trains on: the faces that --data names, and what is noted about them."""

import re

import pytest
from conftest import chosen

from training import data
from training.data import load_dataset, note_enlarged


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
        ('--data demo --image-size 128', 'Note: the pictures are enlarged to 128x128; .* the first is only 64x64\n'),
        ('--data {} --image-size 96', ''),
        ('--data {} --image-size 128x112', 'Note: the pictures are enlarged to 128x112; .* the first is only 108x94\n'),
    ],
)
def test_a_size_larger_than_the_pictures_is_noted(pictures, capsys, flags, note):
    note_enlarged(chosen(flags.format(pictures))[0])
    assert re.fullmatch(note, capsys.readouterr().out)


def test_a_picture_that_cannot_be_read_has_no_size(tmp_path, capsys):
    (tmp_path / 'broken.png').write_bytes(b'no image')
    note_enlarged(chosen(f'--data {tmp_path} --image-size 64')[0])
    assert capsys.readouterr().out == ''
