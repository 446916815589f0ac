import shutil

import numpy as np
import pytest
from conftest import celeb_a, run_command

import helper
from common.cli import UserError
from graph.session import tf
from metrics import features
from metrics.swd import swd
from rundir import checkpoints
from rundir.run_json import read_run
from sampling import generator
from sampling.generator import PRETRAINED, PRETRAINED_ATTRIBUTES, PRETRAINED_BY_SIZE, restored_generator
from sampling.latents import STEPS_PER_LEG, interpolate, sample_latents


def draw_faces(checkpoint, count, seed=0, truncate=1.0):
    return np.concatenate(list(generator.draw_faces(checkpoint, count, seed, truncate)))


def save_checkpoint(prefix, tensors):
    """Save a checkpoint of `tensors`, arrays by name."""
    with tf.Graph().as_default(), tf.Session() as session:
        variables = {name: tf.Variable(tensor) for name, tensor in tensors.items()}
        session.run(tf.global_variables_initializer())
        tf.train.Saver(variables).save(session, str(prefix), write_meta_graph=False, write_state=False)


def load_checkpoint(run_dir):
    """The arrays of the best or newest checkpoint of a run, by name."""
    saved = tf.train.load_checkpoint(str(checkpoints.find(run_dir)[1].prefix))
    return {name: saved.get_tensor(name) for name in saved.get_variable_to_shape_map()}


# --- faces


def test_a_face_depends_on_its_seed_and_index_alone():
    ten, many, other = draw_faces(PRETRAINED, 10), draw_faces(PRETRAINED, 150), draw_faces(PRETRAINED, 10, seed=1)
    assert many.shape == (150, 28, 28, 3) and many.dtype == np.uint8
    np.testing.assert_array_equal(ten, many[:10])
    assert (ten != other).any(axis=(1, 2, 3)).all()


def test_many_faces_are_drawn_in_chunks():
    chunks = list(generator.draw_faces(PRETRAINED, 200, 0))
    assert [len(faces) for faces in chunks] == [64, 64, 64, 8]


def test_truncated_faces_are_less_varied():
    full, half = draw_faces(PRETRAINED, 64), draw_faces(PRETRAINED, 64, truncate=0.5)
    assert half.std(axis=0).mean() < 0.8 * full.std(axis=0).mean()


@pytest.mark.parametrize('averaged', [('kernel', 'gamma', 'beta', 'bias'), ('moving_mean', 'moving_variance'), ('',)])
def test_moving_averages_take_the_place_of_the_weights_that_have_them(tmp_path, averaged):
    shutil.copy(PRETRAINED / 'run.json', tmp_path)
    (tmp_path / 'checkpoints').mkdir()
    tensors = {}
    for name, tensor in load_checkpoint(PRETRAINED).items():
        if name.endswith(averaged):
            tensors |= {name: tensor + 1, f'{name}/ExponentialMovingAverage': tensor}
        else:
            tensors[name] = tensor
    assert len(tensors) > len(load_checkpoint(PRETRAINED))
    save_checkpoint(tmp_path / 'checkpoints' / 'step-1', tensors)
    np.testing.assert_array_equal(draw_faces(tmp_path, 5), draw_faces(PRETRAINED, 5))


@pytest.mark.parametrize(
    ('flags', 'side'), [(('--latent', 'normal'), 28), (('--system', 'ranjan'), 64), (('--system', 'kdnuggets'), 128)]
)
def test_runs_of_other_systems_draw_faces_and_interpolations(tmp_path, pictures, flags, side):
    flags = [*flags, '--width', 0.0625, '--batch-size', 2, '--steps', 1]
    result = run_command('train.py', '--data', pictures, '--run-dir', 'run', *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    faces = draw_faces(tmp_path / 'run', 14)
    assert faces.shape == (14, side, side, 3)
    np.testing.assert_array_equal(faces[:3], draw_faces(tmp_path / 'run', 3))
    with restored_generator(tmp_path / 'run') as restored:
        path = interpolate(restored.system, sample_latents(restored.system, np.random.default_rng(0), 3))
        frames = np.concatenate(list(restored.draw(path, len(path))))
    assert frames.shape == (3 * STEPS_PER_LEG, side, side, 3)
    np.testing.assert_allclose(frames[::STEPS_PER_LEG].astype(int), faces[:3], atol=1)


# --- the pretrained generator


@pytest.mark.parametrize(
    ('size', 'mebibytes', 'parameters'),
    [
        # kernels, gamma and beta, biases, and two moving averages for each of the normalised channels
        (28, 8, 109 * 7 * 7 * 256 + 4 * 4 * (256 * 128 + 128 * 3) + 3 + 4 * (256 + 128)),
        (
            64,
            14,
            109 * 4 * 4 * 512 + 4 * 4 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 3 + 4 * (512 + 256 + 128 + 64),
        ),
    ],
)
def test_a_pretrained_generator_is_small_and_nothing_but_a_generator(size, mebibytes, parameters):
    folder = PRETRAINED_BY_SIZE[size] / 'checkpoints'
    assert sum(path.stat().st_size for path in folder.iterdir()) < mebibytes * 2**20
    tensors = load_checkpoint(PRETRAINED_BY_SIZE[size])
    assert sum(tensor.size for tensor in tensors.values()) == parameters
    assert all(name.startswith('generator/') and np.isfinite(tensor).all() for name, tensor in tensors.items())


def seen_attributes(faces):
    """Whether the feature network sees each attribute on each face, by name."""
    with np.load(features.WEIGHTS) as saved:
        return dict(zip(saved['attributes'], (features.extract(faces)[1] > 0.5).T, strict=True))


@pytest.mark.parametrize('size', PRETRAINED_BY_SIZE)
def test_a_pretrained_generator_draws_attributes_that_are_asked_for(size):
    with restored_generator(PRETRAINED_BY_SIZE[size]) as restored:
        assert restored.system.attributes == PRETRAINED_ATTRIBUTES
        asked = [{name: value} for name in PRETRAINED_ATTRIBUTES for value in (True, False)]
        faces = [face for wanted in asked for chunk in restored.draw_samples(50, 0, wanted=wanted) for face in chunk]
    seen = seen_attributes(np.array(faces))
    for number, name in enumerate(PRETRAINED_ATTRIBUTES):
        with_it, without_it = seen[name].reshape(-1, 2, 50)[number].mean(axis=1)
        assert (with_it + 1 - without_it) / 2 > 0.7, name


@pytest.mark.parametrize('size', PRETRAINED_BY_SIZE)
def test_pretrained_faces_have_attributes_as_often_as_celebrities(size):
    shares = seen_attributes(draw_faces(PRETRAINED_BY_SIZE[size], 500))
    # The shares in all of CelebA's table (Liu et al., 2015).
    for name, share in {'Smiling': 0.48, 'Male': 0.42, 'Young': 0.77, 'Eyeglasses': 0.07, 'Blond_Hair': 0.15}.items():
        assert abs(shares[name].mean() - share) < 0.12, name


@pytest.mark.parametrize('size', PRETRAINED_BY_SIZE)
def test_pretrained_faces_are_varied_and_coloured_like_faces(size):
    faces = draw_faces(PRETRAINED_BY_SIZE[size], 128) / 255
    assert faces.shape == (128, size, size, 3)
    assert faces.std(axis=0).mean() > 0.15  # between faces, at each pixel
    middle = slice(size * 2 // 5, size * 3 // 5)
    skin = faces[:, middle, middle].mean(axis=(0, 1, 2))
    assert skin[0] > skin[1] > skin[2]  # more red than green than blue


@pytest.mark.parametrize(
    ('size', 'bounds'),
    [
        (28, {'28x28': 15, '14x14': 38}),  # of training faces: 7.2 and 18.6
        (64, {'64x64': 12, '32x32': 12, '16x16': 36}),  # of training faces: 6.1, 6.2 and 14.5
    ],
)
def test_pretrained_faces_are_close_to_real_ones(tmp_path, size, bounds):
    run_dir = PRETRAINED_BY_SIZE[size]
    crop = read_run(run_dir)['settings']['crop']
    dataset = helper.Dataset(helper.load_faces(celeb_a('CELEBA_ZIP'), size, tmp_path, crop).faces, 'images')
    held_out = dataset.faces[dataset.held_out]
    distances = swd(draw_faces(run_dir, len(held_out)), held_out)
    assert distances.keys() == bounds.keys() and all(distances[level] < bounds[level] for level in bounds)


# --- damaged checkpoints


def damaged_data(copy):
    (path,) = copy.glob('checkpoints/*.data*')
    path.write_bytes(path.read_bytes()[:1000])


def damaged_index(copy):
    (path,) = copy.glob('checkpoints/*.index')
    path.write_bytes(path.read_bytes()[:100])


def empty_index(copy):
    (path,) = copy.glob('checkpoints/*.index')
    path.write_bytes(b'')


def other_variables(copy):
    save_checkpoint(copy / 'checkpoints' / 'best-1', {'other': 1.0})


def other_shapes(copy):
    tensors = load_checkpoint(copy)
    save_checkpoint(copy / 'checkpoints' / 'best-1', {name: tensor[..., :1] for name, tensor in tensors.items()})


@pytest.mark.parametrize('damage', [damaged_data, damaged_index, empty_index, other_variables, other_shapes])
def test_a_damaged_or_foreign_checkpoint_is_a_user_error_that_names_it(tmp_path, damage):
    copy = shutil.copytree(PRETRAINED, tmp_path / 'copy')
    name = checkpoints.locate(copy)[1][0].prefix.name
    damage(copy)
    if damage in (other_variables, other_shapes):
        name = 'best-1'
    with pytest.raises(UserError, match=f'damaged: {name}$|copy/checkpoints/{name} belongs to another system'):
        draw_faces(copy, 1)
