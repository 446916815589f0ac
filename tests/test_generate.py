import csv
import json
import shutil
import sys

import numpy as np
import pytest
from conftest import assert_one_line, run_command
from PIL import Image, ImageSequence

import generate
import helper
from common.cli import UserError
from export import page
from rundir.run_json import read_run, system_of_run
from sampling import generator, projection
from sampling.generator import PRETRAINED, draw_faces, restored_generator
from sampling.latents import STEPS_PER_LEG, sample_latents
from sampling.pictures import LABEL_HEIGHT

PRETRAINED_SYSTEM = system_of_run(read_run(PRETRAINED))


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
    assert names_in(tmp_path / 'faces') == ['generator.json', 'grid.png', 'images', 'latents.npy']
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
    assert names_in(tmp_path / 'faces') == ['faces.npz', 'generator.json', 'grid.png', 'latents.npy']
    with np.load(tmp_path / 'faces' / 'faces.npz', allow_pickle=False) as arrays:
        assert arrays.files == ['arr_0'] and arrays['arr_0'].dtype == np.uint8
        np.testing.assert_array_equal(arrays['arr_0'], drawn_faces(PRETRAINED, 70))


def test_an_npz_file_appears_only_when_it_is_complete(tmp_path, monkeypatch):
    def faces(*_):
        yield np.zeros((64, 28, 28, 3), np.uint8)
        raise OSError('the disk is full')

    monkeypatch.setattr(generator.Generator, 'draw', faces)
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
    assert names_in(tmp_path / 'faces') == ['generator.json', 'strip.png', 'walk.gif']
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


@pytest.mark.parametrize(
    ('walk', 'chosen'),
    [
        (('--interpolate', '2,0,1'), [(0, 2), (0, 0), (0, 1)]),
        (('--interpolate', '3', '--seeds', '7', '0', '4'), [(7, 0), (0, 0), (4, 0)]),
    ],
)
def test_a_walk_goes_through_the_chosen_faces_with_the_chosen_number_of_frames(tmp_path, monkeypatch, walk, chosen):
    out = tmp_path / 'out'
    generate_here(monkeypatch, *walk, '--frames', 3, '--fps', 25, '--out', out)
    strip = np.asarray(Image.open(out / 'strip.png')).reshape(3, 28, 4, 28, 3).swapaxes(1, 2).astype(int)
    faces = np.array([drawn_faces(PRETRAINED, index + 1, seed)[index] for seed, index in chosen])
    np.testing.assert_allclose(strip[:, 0], faces, atol=1)
    np.testing.assert_allclose(strip[:, -1], np.roll(faces, -1, axis=0), atol=1)
    with Image.open(out / 'walk.gif') as gif:
        assert gif.n_frames == 9 and gif.info['duration'] == 40
    generate_here(monkeypatch, *walk, '--frames', 3, '--format', 'frames', '--out', tmp_path / 'files')
    assert names_in(tmp_path / 'files') == ['frames', 'generator.json']
    assert names_in(tmp_path / 'files' / 'frames') == [f'frame-0000{index}.png' for index in range(9)]
    np.testing.assert_array_equal(faces_in(tmp_path / 'files' / 'frames'), strip[:, :-1].reshape(9, 28, 28, 3))


def test_a_video_without_ffmpeg_fails_with_one_line_before_the_work_begins(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', '')
    monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)  # as if it were not installed
    monkeypatch.setattr(generate, 'restored_generator', None)
    with pytest.raises(UserError, match='--format mp4 requires ffmpeg: pip install imageio-ffmpeg'):
        generate_here(monkeypatch, '--interpolate', 2, '--format', 'mp4', '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


# --- latents in files


def generate_here(monkeypatch, *args):
    """Run generate.py in this process."""
    monkeypatch.setattr('sys.argv', ['generate.py', *map(str, args)])
    generate.main()


def test_latents_in_files_draw_their_faces_again(tmp_path):
    assert run_command('generate.py', '--count', 4, '--out', 'four', cwd=tmp_path).returncode == 0
    latents = np.load(tmp_path / 'four' / 'latents.npy')
    np.testing.assert_array_equal(latents, sample_latents(PRETRAINED_SYSTEM, np.random.default_rng(0), 4))
    np.save(tmp_path / 'last.npy', latents[3])
    files = '--latents', 'last.npy', 'four/latents.npy'
    result = run_command('generate.py', *files, '--truncate', 0.7, '--out', 'five', cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == '' and '5 faces' in result.stdout
    faces = drawn_faces(PRETRAINED, 4, truncate=0.7)
    np.testing.assert_array_equal(faces_in(tmp_path / 'five' / 'images'), faces[[3, 0, 1, 2, 3]])
    result = run_command('generate.py', '--latents', 'last.npy', '--interpolate', 2, cwd=tmp_path)
    assert_one_line(result, 'the first 2 faces are needed, but --latents has 1')
    result = run_command('generate.py', '--seeds', 4, 5, '--interpolate', '0,2', cwd=tmp_path)
    assert_one_line(result, 'the first 3 faces are needed, but --seeds has 2')
    np.save(tmp_path / 'other.npy', latents[:, :64])
    assert_one_line(run_command('generate.py', '--latents', 'other.npy', cwd=tmp_path), 'other.npy', '109', '4x64')
    assert names_in(tmp_path) == ['five', 'four', 'last.npy', 'other.npy']


def test_an_interpolation_goes_through_the_latents_in_files(tmp_path, monkeypatch):
    latents = sample_latents(PRETRAINED_SYSTEM, np.random.default_rng(0), 3)
    np.save(tmp_path / 'backwards.npy', latents[::-1])
    out = tmp_path / 'out'
    generate_here(monkeypatch, '--latents', tmp_path / 'backwards.npy', '--interpolate', 2, '--out', out)
    strip = np.asarray(Image.open(out / 'strip.png')).astype(int)
    np.testing.assert_allclose(strip[:28, :28], drawn_faces(PRETRAINED, 3)[2], atol=1)
    np.testing.assert_allclose(strip[28:, :28], drawn_faces(PRETRAINED, 3)[1], atol=1)


# --- photos


def test_photos_get_faces_and_latents_that_draw_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(projection, 'STEPS', 20)
    monkeypatch.setattr(projection, 'CANDIDATES', 64)
    photos = drawn_faces(PRETRAINED, 2, seed=5)
    for name, photo in zip(('a.png', 'b.bmp'), photos, strict=True):
        Image.fromarray(photo).save(tmp_path / name)
    out = tmp_path / 'out'
    generate_here(monkeypatch, '--project', tmp_path / 'a.png', tmp_path / 'b.bmp', '--scale', 2, '--out', out)
    assert names_in(out) == ['comparison.png', 'generator.json', 'images', 'latents.npy', 'photos.csv']
    assert names_in(out / 'images') == ['face-00000.png', 'face-00001.png']
    found = faces_in(out / 'images')[:, ::2, ::2]
    distances = np.sqrt(((found.astype(float) - photos) ** 2).mean(axis=(1, 2, 3)))
    assert (distances < 30).all()  # the nearest random ones are farther away
    _, *lines = capsys.readouterr().out.splitlines()
    with open(out / 'photos.csv', newline='') as file:
        rows = [[face, photo, float(error)] for face, photo, error in list(csv.reader(file))[1:]]
    assert rows == [
        [f'face-0000{index}.png', str(tmp_path / name), pytest.approx(distances[index], abs=0.06)]
        for index, name in enumerate(('a.png', 'b.bmp'))
    ]
    for line, name, distance in zip(lines, ('a.png', 'b.bmp'), distances, strict=False):
        assert f'{name}: RMS error {distance:.1f} of 255 (best of 1000 random faces: ' in line
    pairs = np.asarray(Image.open(out / 'comparison.png')).reshape(2, 84 + LABEL_HEIGHT, 2, 84, 3).swapaxes(1, 2)
    np.testing.assert_array_equal(pairs[:, 0, :84:3, ::3], photos)
    np.testing.assert_array_equal(pairs[:, 1, :84:3, ::3], found)
    generate_here(monkeypatch, '--latents', out / 'latents.npy', '--out', tmp_path / 'again')
    np.testing.assert_array_equal(faces_in(tmp_path / 'again' / 'images'), found)


def test_all_photos_in_a_folder_are_projected_and_each_result_is_saved_at_once(tmp_path, monkeypatch, capsys):
    def interrupted(_, photos, seed):
        for photo in photos[:2]:
            yield projection.Projection(photo[0, 0, :1] / 255, photo, 0.0, 9.0)
        raise KeyboardInterrupt

    (tmp_path / 'photos' / 'more').mkdir(parents=True)
    (tmp_path / 'photos' / 'a.txt').write_text('no picture')
    names = 'b.png', 'more/c.png', 'd.jpg'
    for brightness, name in enumerate(names):
        Image.new('RGB', (28, 28), (brightness,) * 3).save(tmp_path / 'photos' / name, 'PNG')
    monkeypatch.setattr(generate, 'project', interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_here(monkeypatch, '--project', tmp_path / 'photos', '--out', tmp_path / 'out')
    _, *lines = capsys.readouterr().out.splitlines()
    found = [names.index(line.split('/photos/')[1].split(': RMS')[0]) for line in lines]
    assert found == [0, 2]  # sorted by name
    np.testing.assert_array_equal(faces_in(tmp_path / 'out' / 'images')[:, 0, 0, 0], found)
    np.testing.assert_allclose(np.load(tmp_path / 'out' / 'latents.npy')[:, 0] * 255, found)
    assert [line.split('/')[-1] for line in (tmp_path / 'out' / 'photos.csv').read_text().splitlines()[1:]] == [
        'b.png,0.0', 'd.jpg,0.0'
    ]  # fmt: skip


def test_a_comparison_of_many_photos_shows_the_first_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(projection, 'STEPS', 1)
    monkeypatch.setattr(generate, 'MAX_STRIP_PIXELS', 2 * 84 * 84 * 2)
    for name in 'abc':
        Image.new('RGB', (28, 28)).save(tmp_path / f'{name}.png')
    generate_here(monkeypatch, '--project', *sorted(tmp_path.glob('*.png')), '--out', tmp_path / 'out')
    assert 'Comparison of the first 2: ' in capsys.readouterr().out
    assert Image.open(tmp_path / 'out' / 'comparison.png').height == 2 * (84 + LABEL_HEIGHT)


# --- directions and sums


def test_each_direction_gets_a_strip_with_the_faces_in_the_middle(tmp_path):
    result = run_command('generate.py', '--directions', 2, '--count', 3, '--seed', 4, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ''
    assert names_in(tmp_path / 'faces') == ['direction-00.png', 'direction-01.png', 'directions.npy', 'generator.json']
    first, second = (np.asarray(Image.open(tmp_path / 'faces' / f'direction-0{index}.png')) for index in (0, 1))
    strips = np.array([first, second]).reshape(2, 3, 84 + LABEL_HEIGHT, 5, 84, 3).swapaxes(2, 3)[..., :84:3, ::3, :]
    for strip in strips:
        np.testing.assert_array_equal(strip[:, 2], drawn_faces(PRETRAINED, 3, seed=4))
    assert (strips[0, :, 0] != strips[1, :, 0]).any(axis=(1, 2, 3)).all()
    directions = np.load(tmp_path / 'faces' / 'directions.npy')
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-5)


def test_more_directions_than_a_latent_has_values_are_an_error(tmp_path, pictures):
    flags = '--width', 0.0625, '--batch-size', 2, '--steps', 1, '--latent-size', 3
    assert run_command('train.py', '--data', pictures, '--run-dir', 'run', *flags, cwd=tmp_path).returncode == 0
    result = run_command('generate.py', '--checkpoint', 'run', '--directions', 4, '--out', 'out', cwd=tmp_path)
    assert_one_line(result, '3', '--directions')
    assert not (tmp_path / 'out').exists()


def test_a_sum_of_faces_is_drawn_as_in_the_paper(tmp_path):
    result = run_command('generate.py', '--arithmetic', '3,8 - 5 +1,2,0', cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ''
    assert names_in(tmp_path / 'faces') == ['arithmetic.png', 'generator.json', 'latents.npy']
    picture = np.asarray(Image.open(tmp_path / 'faces' / 'arithmetic.png'))
    high, wide, gap = 84 + LABEL_HEIGHT, 84, LABEL_HEIGHT
    assert picture.shape == (4 * high, 6 * wide + 3 * gap, 3)

    def face(row, left):
        return picture[row * high : row * high + 84 : 3, left : left + 84 : 3]

    latents = sample_latents(PRETRAINED_SYSTEM, np.random.default_rng(0), 9)
    means = np.array([latents[[3, 8]].mean(axis=0), latents[5], latents[[1, 2, 0]].mean(axis=0)])
    np.testing.assert_allclose(np.load(tmp_path / 'faces' / 'latents.npy'), [means[0] - means[1] + means[2]], rtol=1e-4)
    with restored_generator(PRETRAINED) as restored:
        latents = np.vstack([latents, means, means[0] - means[1] + means[2]])
        drawn = np.concatenate(list(restored.draw(latents, len(latents)))).astype(int)
    for row, column, index in (
        (1, 0, 3), (2, 0, 8), (3, 0, 9), (2, 1, 5), (3, 1, 10), (0, 2, 1), (1, 2, 2), (2, 2, 0), (3, 2, 11), (2, 4, 12),
    ):  # fmt: skip
        left = column * (wide + gap) if column < 3 else 3 * (wide + gap) + (column - 3) * wide
        np.testing.assert_allclose(face(row, left), drawn[index], atol=1)
    assert (face(0, 0) == 0).all()


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
        ('--checkpoint run --size 64', ('--checkpoint', '--size')),
        ('--page mine --truncate 0.5', ('--page', '--truncate')),
        ('--export mine --scale 1', ('--export', '--scale')),
        ('--latents a.npy --seed 0', ('--latents', '--seed')),
        ('--export mine --with Male', ('--export', '--with ')),
        ('--attribute-grid 3 --count 10', ('--attribute-grid', '--count')),
        ('--interpolate 3 --count 4', ('--interpolate', '--count')),
        ('--latents a.npy --count 4', ('--latents', '--count')),
        ('--latents a.npy --seed 4', ('--latents', '--seed')),
        ('--project a.png --latents a.npy', ('--project', '--latents')),
        ('--project a.png --truncate 0.5', ('--project', '--truncate')),
        ('--directions 3 --arithmetic 1-2', ('--directions', '--arithmetic')),
        ('--arithmetic 1-2 --count 4', ('--arithmetic', '--count')),
        ('--arithmetic 1-', ('--arithmetic', "''", '0 to 999999')),
        ('--arithmetic 1,,2', ('--arithmetic', "''", '0 to 999999')),
        ('--arithmetic 1,x', ('--arithmetic', "'x'", '0 to 999999')),
        ('--interpolate 3 --format npz', ('--format npz', '--interpolate', 'gif or mp4 or frames')),
        ('--interpolate 3 --format frames --fps 5', ('--fps', '--format frames')),
        ('--interpolate 1', ('--interpolate', '2 to 1000')),
        ('--interpolate 1,', ('--interpolate', "''", '0 to 999999')),
        ('--directions 3 --format mp4', ('--format', '--directions')),
        ('--seeds 1 2 --count 4', ('--seeds', '--count')),
        ('--seeds 1 2 --latents a.npy', ('--seeds', '--latents')),
        ('--frames 5', ('--frames requires --interpolate',)),
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
    """A copy of a run whose checkpoints are all cut short."""
    copy = shutil.copytree(run, folder / 'damaged')
    for path in (copy / 'checkpoints').glob('*.data*'):
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
    assert 'Grid' not in result.stdout and not (tmp_path / 'out').exists()
