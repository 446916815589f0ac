import contextlib
from dataclasses import replace

import numpy as np
import pytest
from conftest import encode
from PIL import Image

import dcgan
from common.cli import UserError
from dataset import DataError
from graph.session import open_session, tf
from sampling import projection
from sampling.generator import PRETRAINED, Generator, draw, restored_generator
from sampling.latents import sample_latents
from sampling.projection import constrain, find_photos, project, pyramid_loss, read_photo, rms
from systems import SYSTEMS, Layer

SMALL = (
    Layer('dense', (4, 4, 16), batch_norm=True),
    Layer('conv2d_transpose', 8, stride=2, batch_norm=True),
    Layer('conv2d_transpose', 3, stride=2, activation='tanh'),
)


def faces_of(generator, latents):
    return np.concatenate(list(draw(generator.session, generator.z, generator.images, latents)))


@contextlib.contextmanager
def small_generator(latent='uniform'):
    """A small generator of 16x16 pixels with random weights, large enough for its images to differ."""
    system = replace(
        SYSTEMS['oreilly'], image_size=16, latent_size=10, latent=latent, generator=SMALL, weight_stddev=0.3
    )
    with tf.Graph().as_default(), open_session() as session:
        tf.set_random_seed(0)
        z = tf.placeholder(tf.float32, [None, 10])
        images = dcgan.generator(system, z, training=False)
        session.run(tf.global_variables_initializer())
        yield Generator(None, system, session, z, images)


def test_the_latent_of_a_drawn_face_draws_nearly_the_same_face():
    with restored_generator(PRETRAINED) as generator:
        photos = faces_of(generator, sample_latents(generator.system, np.random.default_rng(5), 1))
        (found,) = project(generator, photos, seed=0)
        np.testing.assert_array_equal(faces_of(generator, [found.latent])[0], found.face)
    assert found.distance < 4 < 20 < found.random_distance
    np.testing.assert_allclose(found.distance, np.sqrt(np.mean((photos[0] - found.face.astype(float)) ** 2)), rtol=1e-5)
    assert found.latent.shape == (109,) and np.abs(found.latent).max() <= 1


@pytest.mark.parametrize('latent', ['uniform', 'normal'])
def test_each_photo_gets_a_latent_that_the_distribution_may_have(latent):
    with small_generator(latent) as generator:
        photos = faces_of(generator, sample_latents(generator.system, np.random.default_rng(1), 2))
        found = list(project(generator, photos, seed=0))
    for each, photo, other in zip(found, photos, photos[::-1], strict=True):
        assert each.distance < 6 < each.random_distance
        assert rms(each.face[None], photo) < rms(each.face[None], other)
        norm, largest = np.linalg.norm(each.latent), np.abs(each.latent).max()
        assert largest <= 1 if latent == 'uniform' else norm <= 10**0.5 + 1e-4


def test_a_projection_depends_on_the_photo_and_the_seed_alone(monkeypatch):
    monkeypatch.setattr(projection, 'STEPS', 10)

    def latents_of(photos, seed):
        with small_generator() as generator:
            return [found.latent for found in project(generator, photos, seed)]

    photos = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    first, second = latents_of(photos, 0)
    np.testing.assert_array_equal(latents_of(photos[1:], 0), [second])
    assert (latents_of(photos[1:], 1)[0] != second).any() and (first != second).any()


def test_latents_are_moved_into_the_cube_or_the_sphere():
    latents = np.random.default_rng(0).normal(0, 2, (5, 9)).astype(np.float32)
    with tf.Graph().as_default(), open_session() as session:
        uniform, normal = (
            session.run(constrain(SYSTEMS[name], tf.constant(latents))) for name in ('oreilly', 'ranjan')
        )
    np.testing.assert_array_equal(uniform, latents.clip(-1, 1))
    norms = np.linalg.norm(latents, axis=1, keepdims=True)
    np.testing.assert_allclose(normal, latents * np.minimum(1, 3 / norms), rtol=1e-5)


def test_the_loss_is_the_mean_squared_difference_at_each_scale():
    images, photo = (np.random.default_rng(0).random(shape) for shape in ((3, 12, 12, 3), (12, 12, 3)))
    with tf.Graph().as_default(), open_session() as session:
        loss = session.run(pyramid_loss(tf.constant(images), tf.constant(photo)))
    difference = images - photo
    halved = (difference.reshape(3, 6, 2, 6, 2, 3)).mean(axis=(2, 4))
    np.testing.assert_allclose(loss, (difference**2).mean(axis=(1, 2, 3)) + (halved**2).mean(axis=(1, 2, 3)))


# --- photos


def test_a_photo_is_cropped_as_for_training(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'aligned.png')
    system = replace(SYSTEMS['oreilly'], image_size=54, crop=54)
    np.testing.assert_array_equal(read_photo(tmp_path / 'aligned.png', system), pixels[82:136, 62:116])


@pytest.mark.parametrize('content', [b'', b'no picture', encode(np.zeros((30, 30, 3)))[:60], None])
def test_a_photo_that_cannot_be_read_is_an_error_that_names_it(tmp_path, content):
    if content is not None:
        (tmp_path / 'photo.png').write_bytes(content)
    with pytest.raises(UserError, match=r'photo\.png cannot be read: \w+'):
        read_photo(tmp_path / 'photo.png', SYSTEMS['oreilly'])


def test_a_folder_without_photos_is_an_error_that_names_it(tmp_path):
    (tmp_path / 'notes.txt').write_text('')
    with pytest.raises(DataError, match=f'{tmp_path} contains no images'):
        find_photos([tmp_path])
