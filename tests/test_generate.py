import json
import shutil

import numpy as np
import pytest
from conftest import assert_one_line, run_command
from PIL import Image, ImageSequence

import generate
import helper
from common.cli import UserError
from sampling import generator, page
from sampling.generator import PRETRAINED, draw_faces
from sampling.latents import STEPS_PER_LEG
from sampling.pictures import LABEL_HEIGHT


def drawn_faces(checkpoint, count, seed=0, truncate=1.0):
    return np.concatenate(list(draw_faces(checkpoint, count, seed, truncate)))


def faces_in(folder):
    """The faces in the PNG files of a folder, in the order of their names."""
    return np.array([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# --- faces


def test_one_command_draws_ten_faces(tmp_path):
    result = run_command('generate.py', cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ''
    assert names_in(tmp_path / 'faces') == ['grid.png', 'images']
    assert names_in(tmp_path / 'faces' / 'images') == [f'face-{index:05}.png' for index in range(10)]
    assert 'faces/images/face-*.png' in result.stdout and 'faces/grid.png' in result.stdout
    faces = faces_in(tmp_path / 'faces' / 'images')
    assert faces.shape == (10, 28, 28, 3)
    np.testing.assert_array_equal(faces, drawn_faces(PRETRAINED, 10))
    with Image.open(tmp_path / 'faces' / 'grid.png') as grid:
        assert grid.size == (4 * 28 * 3, 3 * (28 * 3 + LABEL_HEIGHT))
        caption = np.asarray(grid)[28 * 3 : 28 * 3 + LABEL_HEIGHT, : 28 * 3]
    assert caption.max() > 200  # the index of the face


def test_a_second_call_overwrites_nothing(tmp_path):
    for options in ((), ('--count', 3, '--scale', 5, '--truncate', 1)):
        assert run_command('generate.py', *options, cwd=tmp_path).returncode == 0
    small, large = (faces_in(tmp_path / name / 'images') for name in ('faces', 'faces-2'))
    assert len(small) == 10 and len(large) == 3
    np.testing.assert_array_equal(large, small[:3].repeat(5, axis=1).repeat(5, axis=2))
    assert_one_line(run_command('generate.py', '--out', 'faces', cwd=tmp_path), 'faces is not empty', '--out')


def test_an_npz_file_holds_the_same_faces(tmp_path):
    result = run_command('generate.py', '--format', 'npz', '--count', 70, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == '' and 'faces/faces.npz' in result.stdout
    assert names_in(tmp_path / 'faces') == ['faces.npz', 'grid.png']
    with np.load(tmp_path / 'faces' / 'faces.npz', allow_pickle=False) as arrays:
        assert arrays.files == ['arr_0'] and arrays['arr_0'].dtype == np.uint8
        np.testing.assert_array_equal(arrays['arr_0'], drawn_faces(PRETRAINED, 70))


def test_an_npz_file_appears_only_when_it_is_complete(tmp_path, monkeypatch):
    def faces(*_):
        yield np.zeros((64, 28, 28, 3), np.uint8)
        raise OSError('the disk is full')

    monkeypatch.setattr(generate, 'draw_faces', faces)
    monkeypatch.setattr('sys.argv', ['generate.py', '--format', 'npz', '--count', '70', '--out', str(tmp_path / 'out')])
    with pytest.raises(OSError, match='the disk is full'):
        generate.main()
    assert names_in(tmp_path / 'out') == ['grid.png']


def test_a_run_draws_the_faces_of_its_last_grid(trained, tmp_path):
    result = run_command('generate.py', '--checkpoint', trained, '--count', 64, '--out', 'own', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    faces = faces_in(tmp_path / 'own' / 'images')
    grid = Image.open(trained / 'samples' / 'step-00000010.png')
    np.testing.assert_allclose(helper.images_square_grid(faces, (0, 255)), np.asarray(grid), atol=1)
    np.testing.assert_array_equal(faces, drawn_faces(trained / 'checkpoints' / 'step-10', 64))
    assert (drawn_faces(trained / 'checkpoints' / 'step-6.index', 64) != faces).any()


# --- interpolations


def test_an_interpolation_shows_each_face_as_if_drawn_alone(tmp_path):
    result = run_command('generate.py', '--interpolate', 3, '--scale', 2, '--seed', 4, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ''
    assert names_in(tmp_path / 'faces') == ['strip.png', 'walk.gif']
    assert 'faces/strip.png' in result.stdout and 'faces/walk.gif' in result.stdout
    faces = drawn_faces(PRETRAINED, 3, seed=4).repeat(2, axis=1).repeat(2, axis=2).astype(int)
    columns = STEPS_PER_LEG + 1
    strip = np.asarray(Image.open(tmp_path / 'faces' / 'strip.png')).astype(int)
    assert strip.shape == (3 * 56, columns * 56, 3)
    legs = strip.reshape(3, 56, columns, 56, 3).swapaxes(1, 2)
    np.testing.assert_allclose(legs[:, 0], faces, atol=1)
    np.testing.assert_allclose(legs[:, -1], faces[[1, 2, 0]], atol=1)
    halfway = np.abs(legs[:, STEPS_PER_LEG // 2] - legs[:, 0]).mean(axis=(1, 2, 3))
    assert (halfway > 5).all()
    with Image.open(tmp_path / 'faces' / 'walk.gif') as gif:
        assert (gif.n_frames, gif.size, gif.info['loop']) == (3 * STEPS_PER_LEG, (56, 56), 0)
        frames = np.array([np.asarray(frame.convert('RGB')) for frame in ImageSequence.Iterator(gif)]).astype(int)
    shown = legs[:, :-1].reshape(frames.shape)
    assert np.abs(frames - shown).mean() < 8  # 256 colours


def test_a_strip_that_would_be_too_large_is_an_error(tmp_path, monkeypatch):
    out = tmp_path / 'out'
    monkeypatch.setattr('sys.argv', ['generate.py', '--interpolate', '1000', '--scale', '8', '--out', str(out)])
    with pytest.raises(UserError, match='--interpolate'):
        generate.main()
    assert not out.exists()


# --- exports


def test_an_exported_generator_draws_the_faces_of_its_run(trained, tmp_path):
    result = run_command('generate.py', '--checkpoint', trained, '--export', 'mine', cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == '' and result.stdout == 'The generator: mine\n'
    assert names_in(tmp_path) == ['mine']
    np.testing.assert_array_equal(drawn_faces(tmp_path / 'mine', 5), drawn_faces(trained, 5))
    assert json.loads((tmp_path / 'mine' / 'run.json').read_text())['settings']['data'] == 'pictures.zip'
    assert_one_line(run_command('generate.py', '--export', 'mine', cwd=tmp_path), 'mine already exists')


# --- errors


@pytest.mark.parametrize(
    ('flags', 'named'),
    [
        ('--export mine --interpolate 3', ('--export', '--interpolate')),
        ('--export mine --format npz', ('--export', '--format npz', 'saved_model')),
        ('--format onnx', ('--format onnx', 'png or npz')),
        ('--export mine --truncate 0.5', ('--export', '--truncate')),
        ('--page mine --export other', ('--page', '--export')),
        ('--page mine --truncate 0.5', ('--page', '--truncate')),
        ('--interpolate 3 --count 4', ('--interpolate', '--count')),
        ('--interpolate 3 --format npz', ('--interpolate', '--format')),
        ('--format npz --scale 2', ('--format npz', '--scale')),
        ('--count 0', ('--count', '1 to 1000000')),
        ('--count 1000001', ('--count', '1 to 1000000')),
        ('--truncate 0', ('--truncate', 'above 0 to 1')),
        ('--out=', ('--out', 'empty')),
    ],
)
def test_errors_name_the_flags_that_are_wrong_or_have_no_effect(monkeypatch, flags, named):
    monkeypatch.setattr('sys.argv', ['generate.py', *flags.split()])
    with pytest.raises(UserError) as error:
        generate.parse_arguments()
    assert all(text in str(error.value) for text in named)


def damaged(run, folder):
    """A copy of a run whose newest checkpoint is cut short."""
    copy = shutil.copytree(run, folder / 'damaged')
    for path in (copy / 'checkpoints').glob('step-10.data*'):
        path.write_bytes(path.read_bytes()[:1000])
    return copy


def empty(_, folder):
    (folder / 'empty').mkdir()
    return folder / 'empty'


def missing(_, folder):
    return folder / 'missing'


@pytest.mark.parametrize('flags', ['--out', '--interpolate 3 --out', '--export', '--page'])
def test_a_folder_that_cannot_be_written_is_an_error_before_the_work_begins(tmp_path, monkeypatch, flags):
    def restored(*_):
        raise AssertionError('a generator was restored')

    (tmp_path / 'file').write_text('')
    out = tmp_path / 'file' / 'out'
    monkeypatch.setattr('sys.argv', ['generate.py', *flags.split(), str(out)])
    for module in generator, page, generate:
        monkeypatch.setattr(module, 'restored_generator', restored)
    with pytest.raises(OSError, match=str(out)):
        generate.main()


@pytest.mark.parametrize('broken', [damaged, empty, missing])
def test_a_checkpoint_that_cannot_be_used_is_an_error_of_one_line(trained, tmp_path, broken):
    checkpoint = broken(trained, tmp_path)
    result = run_command('generate.py', '--checkpoint', checkpoint, '--out', 'out', cwd=tmp_path)
    assert_one_line(result, str(checkpoint))
    assert result.stdout == '' and not (tmp_path / 'out').exists()
