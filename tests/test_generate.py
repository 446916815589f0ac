import errno
import json
import shutil

import numpy as np
import pytest
from conftest import celeb_a, run_command
from PIL import Image, ImageSequence

import cli
import generate
import helper
import metrics
import rundir
from systems import SYSTEMS


def draw(checkpoint, count, seed=0, truncate=1.0):
    return np.concatenate(list(generate.draw_faces(checkpoint, count, seed, truncate)))


def pictures_in(folder):
    """The faces in the PNG files of a folder, in the order of their names."""
    return np.array([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


def test_ten_faces_at_once(tmp_path):
    result = run_command('generate.py', cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ''
    assert sorted(path.name for path in (tmp_path / 'faces').iterdir()) == ['grid.png', 'images']
    names = sorted(path.name for path in (tmp_path / 'faces' / 'images').iterdir())
    assert names == [f'face-{number:05}.png' for number in range(10)]  # and nothing else
    assert 'faces/images/face-*.png' in result.stdout and 'faces/grid.png' in result.stdout
    faces = pictures_in(tmp_path / 'faces' / 'images')
    assert faces.shape == (10, 28, 28, 3)
    np.testing.assert_array_equal(faces, draw(generate.PRETRAINED, 10))
    with Image.open(tmp_path / 'faces' / 'grid.png') as grid:
        assert grid.size == (4 * 28 * 3, 3 * (28 * 3 + generate.LABEL_HEIGHT))
        label = np.asarray(grid)[28 * 3 : 28 * 3 + generate.LABEL_HEIGHT, : 28 * 3]
    assert label.max() > 200  # the number


def test_a_second_call_overwrites_nothing(tmp_path):
    for options in ((), ('--count', 3, '--scale', 5, '--truncate', 1)):
        assert run_command('generate.py', *options, cwd=tmp_path).returncode == 0
    small, large = (pictures_in(tmp_path / name / 'images') for name in ('faces', 'faces-2'))
    assert len(small) == 10 and len(large) == 3
    np.testing.assert_array_equal(large, small[:3].repeat(5, axis=1).repeat(5, axis=2))
    third = run_command('generate.py', '--out', 'faces', cwd=tmp_path)
    assert third.returncode == 2 and '--out' in third.stderr and third.stderr.count('\n') == 1


def test_an_npz_file_holds_the_faces_of_the_png_files(tmp_path):
    result = run_command('generate.py', '--format', 'npz', '--count', 70, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == '' and 'faces/faces.npz' in result.stdout
    assert sorted(path.name for path in (tmp_path / 'faces').iterdir()) == ['faces.npz', 'grid.png']
    with np.load(tmp_path / 'faces' / 'faces.npz', allow_pickle=False) as arrays:
        assert arrays.files == ['arr_0'] and arrays['arr_0'].dtype == np.uint8
        np.testing.assert_array_equal(arrays['arr_0'], draw(generate.PRETRAINED, 70))


def test_an_npz_file_that_is_not_whole_does_not_appear(tmp_path):
    def faces():
        yield np.zeros((28, 28, 3), np.uint8)
        raise OSError('the disk is full')

    with pytest.raises(OSError, match='the disk is full'):
        generate.write_npz(tmp_path / 'faces.npz', faces(), (2, 28, 28, 3))
    assert list(tmp_path.iterdir()) == []


def test_a_face_depends_on_its_seed_and_number_alone():
    ten, many, other = draw(generate.PRETRAINED, 10), draw(generate.PRETRAINED, 150), draw(generate.PRETRAINED, 10, 1)
    assert len(many) == 150
    np.testing.assert_array_equal(ten, many[:10])
    assert (ten != other).any(axis=(1, 2, 3)).all()


def test_latents_have_the_articles_distribution():
    latents = generate.draw_latents(SYSTEMS['oreilly'], np.random.default_rng(0), 5000)
    assert latents.shape == (5000, 100) and latents.dtype == np.float32
    assert -1 <= latents.min() < -0.999 and 0.999 < latents.max() <= 1
    np.testing.assert_allclose([latents.mean(), latents.var()], [0, 1 / 3], atol=0.005)
    latents = generate.draw_latents(SYSTEMS['ranjan'], np.random.default_rng(0), 5000)
    np.testing.assert_allclose([latents.mean(), latents.var(), (latents**4).mean()], [0, 1, 3], atol=0.05)


@pytest.mark.parametrize(('system', 'variance'), [('oreilly', 1 / 3), ('ranjan', 1)])
def test_truncated_latents_are_nearer_to_the_middle_in_the_same_direction(system, variance):
    whole, half = (
        generate.draw_latents(SYSTEMS[system], np.random.default_rng(0), 5000, truncate) for truncate in (1.0, 0.5)
    )
    np.testing.assert_allclose(half.var(), variance / 4, rtol=0.02)
    np.testing.assert_allclose(half, whole / 2, rtol=1e-6)


def test_truncated_faces_are_less_varied():
    whole, half = draw(generate.PRETRAINED, 64), draw(generate.PRETRAINED, 64, truncate=0.5)
    assert half.std(axis=0).mean() < 0.8 * whole.std(axis=0).mean()


def test_slerp_follows_the_great_circle():
    x, y = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    root = np.sqrt(0.5)
    np.testing.assert_allclose(generate.slerp(x, y, np.array([0, 0.5, 1])), [[1, 0], [root, root], [0, 1]], atol=1e-12)
    third = generate.slerp(x, y, np.array([1 / 3]))  # of a right angle: 30 degrees
    np.testing.assert_allclose(third, [[np.sqrt(3) / 2, 0.5]])
    np.testing.assert_allclose(np.linalg.norm(generate.slerp(3 * x, 3 * y, np.linspace(0, 1, 9)), axis=1), 3)


@pytest.mark.parametrize(
    ('start', 'end', 'middle'),
    [([1, 2], [1, 2], [1, 2]), ([1, 2], [3, 6], [2, 4]), ([1, 0], [-1, 0], [0, 0]), ([0, 0], [2, 0], [1, 0])],
)
@pytest.mark.filterwarnings('error')
def test_slerp_where_there_is_no_great_circle_is_a_straight_line(start, end, middle):
    np.testing.assert_allclose(generate.slerp(np.array(start), np.array(end), np.array([0.5])), [middle])


@pytest.mark.parametrize('between', [generate.straight, generate.slerp])
def test_a_walk_passes_through_every_latent_and_back(between):
    latents = np.random.default_rng(0).standard_normal((5, 100)).astype(np.float32)
    steps = generate.walk(latents, between)
    assert steps.shape == (5 * generate.LEG_FRAMES, 100) and steps.dtype == np.float32
    np.testing.assert_array_equal(steps[:: generate.LEG_FRAMES], latents)
    lengths = np.linalg.norm(np.roll(steps, -1, axis=0) - steps, axis=1)
    assert lengths.max() < 2 * lengths.min()  # no jumps, from the last to the first either


def test_straight_steps_are_even():
    line = generate.straight(np.array([0.0, 1.0]), np.array([1.0, -1.0]), np.array([0, 0.25, 1]))
    np.testing.assert_allclose(line, [[0, 1], [0.25, 0.5], [1, -1]])


def test_a_walk_shows_each_face_as_drawn_alone(tmp_path):
    result = run_command('generate.py', '--interpolate', 3, '--scale', 2, '--seed', 4, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ''
    assert sorted(path.name for path in (tmp_path / 'faces').iterdir()) == ['strip.png', 'walk.gif']
    assert 'faces/strip.png' in result.stdout and 'faces/walk.gif' in result.stdout
    faces = draw(generate.PRETRAINED, 3, seed=4).repeat(2, axis=1).repeat(2, axis=2).astype(int)
    columns = generate.LEG_FRAMES + 1
    strip = np.asarray(Image.open(tmp_path / 'faces' / 'strip.png')).astype(int)
    assert strip.shape == (3 * 56, columns * 56, 3)
    legs = strip.reshape(3, 56, columns, 56, 3).swapaxes(1, 2)
    np.testing.assert_allclose(legs[:, 0], faces, atol=1)
    np.testing.assert_allclose(legs[:, -1], faces[[1, 2, 0]], atol=1)
    halfway = np.abs(legs[:, generate.LEG_FRAMES // 2] - legs[:, 0]).mean(axis=(1, 2, 3))
    assert (halfway > 5).all()
    with Image.open(tmp_path / 'faces' / 'walk.gif') as gif:
        assert (gif.n_frames, gif.size, gif.info['loop']) == (3 * generate.LEG_FRAMES, (56, 56), 0)
        frames = np.array([np.asarray(frame.convert('RGB')) for frame in ImageSequence.Iterator(gif)]).astype(int)
    shown = legs[:, :-1].reshape(frames.shape)
    assert np.abs(frames - shown).mean() < 8  # 256 colours


def test_a_strip_that_would_be_too_large_is_an_error():
    with pytest.raises(cli.UserError, match='--interpolate'):
        generate.draw_walk(generate.PRETRAINED, 1000, 0, scale=8)


@pytest.mark.parametrize(
    ('flags', 'named'),
    [
        ('--export mine --interpolate 3', ('--export', '--interpolate')),
        ('--export mine --format npz', ('--export', '--format')),
        ('--export mine --truncate 0.5', ('--export', '--truncate')),
        ('--interpolate 3 --count 4', ('--interpolate', '--count')),
        ('--interpolate 3 --format npz', ('--interpolate', '--format')),
        ('--format npz --scale 2', ('--format npz', '--scale')),
    ],
)
def test_flags_without_use_beside_others_are_named(tmp_path, monkeypatch, flags, named):
    monkeypatch.setattr('sys.argv', ['generate.py', *flags.split()])
    with pytest.raises(cli.UserError) as error:
        generate.parse_arguments()
    assert all(flag in str(error.value) for flag in named)


def test_many_faces_come_in_chunks():
    chunks = list(generate.draw_faces(generate.PRETRAINED, 200, 0))
    assert [len(faces) for faces in chunks] == [64, 64, 64, 8]


def test_the_shipped_generator_is_small_and_a_generator_only():
    from runtime import tf

    size = sum(path.stat().st_size for path in (generate.PRETRAINED / 'checkpoints').iterdir())
    assert size < 20 * 2**20
    saved = tf.train.load_checkpoint(str(rundir.find_checkpoint(generate.PRETRAINED)[1]))
    shapes = saved.get_variable_to_shape_map()
    # the published parameters, and two moving averages for each of 512 + 256 + 128 channels
    assert sum(np.prod(shape) for shape in shapes.values()) == 4_312_195 + 2 * 896
    assert all(name.startswith('generator/') and np.isfinite(saved.get_tensor(name)).all() for name in shapes)


def test_the_shipped_faces_are_varied_and_not_grey():
    faces = draw(generate.PRETRAINED, 128) / 255
    assert faces.std(axis=0).mean() > 0.15  # between faces, at each pixel
    skin = faces[:, 10:20, 10:18].mean(axis=(0, 1, 2))
    assert skin[0] > skin[1] > skin[2]  # more red than green than blue


def test_the_shipped_faces_are_close_to_real_ones(tmp_path):
    faces = helper.load_faces(celeb_a('CELEBA_ZIP'), 28, tmp_path)
    _, held_out = helper.split(len(faces))
    distances = metrics.swd(draw(generate.PRETRAINED, len(held_out)), faces[held_out])
    assert distances[28] < 15 and distances[14] < 25  # of training faces: 7.2 and 18.6


def test_a_run_draws_the_faces_of_its_last_grid(trained, tmp_path):
    result = run_command('generate.py', '--checkpoint', trained, '--count', 64, '--out', 'own', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    faces = pictures_in(tmp_path / 'own' / 'images')
    grid = Image.open(trained / 'samples' / 'step-00000010.png')
    np.testing.assert_allclose(helper.images_square_grid(faces, (0, 255)), np.asarray(grid), atol=1)
    np.testing.assert_array_equal(faces, draw(trained / 'checkpoints' / 'step-10', 64))
    assert (draw(trained / 'checkpoints' / 'step-6.index', 64) != faces).any()


def test_an_exported_generator_draws_the_same_faces(trained, tmp_path):
    result = run_command('generate.py', '--checkpoint', trained, '--export', tmp_path / 'first', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (tmp_path / 'first').rename(tmp_path / 'mine')  # it can be moved
    np.testing.assert_array_equal(draw(tmp_path / 'mine', 5), draw(trained, 5))
    assert json.loads((tmp_path / 'mine' / 'run.json').read_text())['settings']['data'] == 'pictures.zip'
    assert run_command('generate.py', '--export', 'mine', cwd=tmp_path).returncode == 2


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(generate.json, 'dumps', full)
    with pytest.raises(OSError, match='mine'):
        generate.export_generator(generate.PRETRAINED, tmp_path / 'mine')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('flags', 'side'), [(('--latent', 'normal'), 28), (('--system', 'ranjan'), 64), (('--system', 'kdnuggets'), 128)]
)
def test_runs_of_other_systems_draw_faces_and_walks(tmp_path, pictures, flags, side):
    flags = [*flags, '--width', 0.0625, '--batch-size', 2, '--steps', 1]
    result = run_command('train.py', '--data', pictures, '--run-dir', 'run', *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    faces = draw(tmp_path / 'run', 14)
    assert faces.shape == (14, side, side, 3)
    np.testing.assert_array_equal(faces[:3], draw(tmp_path / 'run', 3))
    frames = generate.draw_walk(tmp_path / 'run', 3, 0)
    assert frames.shape == (3 * generate.LEG_FRAMES, side, side, 3)
    np.testing.assert_allclose(frames[:: generate.LEG_FRAMES].astype(int), faces[:3], atol=1)


def test_the_demo_is_drawn_once(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, 'DEMO_FACES', 100)
    faces = generate.load_demo(tmp_path, 28)
    assert faces.shape == (100, 28, 28, 3) and faces.dtype == np.uint8
    np.testing.assert_array_equal(faces, draw(generate.PRETRAINED, 100))
    monkeypatch.setattr(generate, 'draw_faces', None)
    np.testing.assert_array_equal(generate.load_demo(tmp_path, 28), faces)


def test_the_demo_is_scaled_for_larger_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, 'DEMO_FACES', 5)
    large = generate.load_demo(tmp_path, 64)
    assert large.shape == (5, 64, 64, 3) and large.dtype == np.uint8
    small = draw(generate.PRETRAINED, 5)
    np.testing.assert_allclose(large.mean(axis=(1, 2)), small.mean(axis=(1, 2)), atol=2)


def damaged(run, folder):
    """A copy of a run whose newest checkpoint is cut short."""
    copy = shutil.copytree(run, folder / 'damaged')
    for path in (copy / 'checkpoints').glob('step-10.data*'):
        path.write_bytes(path.read_bytes()[:1000])
    return copy


def foreign(run, folder):
    """A copy of a run whose checkpoint is of other variables."""
    from runtime import tf

    copy = shutil.copytree(run, folder / 'foreign')
    with tf.Graph().as_default(), tf.Session() as session:
        tf.get_variable('other', initializer=1.0)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(copy / 'checkpoints' / 'step-11'))
    return copy


def empty(_, folder):
    (folder / 'empty').mkdir()
    return folder / 'empty'


def missing(_, folder):
    return folder / 'missing'


@pytest.mark.parametrize('broken', [damaged, foreign, empty, missing])
def test_a_checkpoint_that_cannot_be_used_ends_in_one_line(trained, tmp_path, broken):
    checkpoint = broken(trained, tmp_path)
    result = run_command('generate.py', '--checkpoint', checkpoint, '--out', 'out', cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == '' and not (tmp_path / 'out').exists()
    assert result.stderr.count('\n') == 1 and str(checkpoint) in result.stderr
