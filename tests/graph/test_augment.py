"""Augmentations sampled many times, against what their article says: one kind of change, its bounds, its frequency."""

from dataclasses import replace

import numpy as np
import pytest

from graph import augment
from graph.session import tf
from systems import SYSTEMS

OREILLY = SYSTEMS['oreilly']
FACE = np.random.default_rng(0).uniform(-1, 1, (28, 28, 3)).astype(np.float32)


@pytest.fixture
def sample(at_step):
    """A function that returns copies of a face after a `change`, at some steps: (len(steps) * count, 28, 28, 3)."""

    def sample(change, count=400, face=FACE, steps=(0,)):
        changed = change(tf.constant(np.tile(face, (count, 1, 1, 1))))
        tf.train.get_or_create_global_step()
        return np.concatenate([at_step(number, changed) for number in steps])

    return sample


def test_flip_mirrors_images_with_its_probability(sample):
    results = sample(lambda images: augment.flip(images, 0.3))
    mirrored = (results == FACE[:, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (results == FACE).all(axis=(1, 2, 3))).all()
    np.testing.assert_allclose(mirrored.mean(), 0.3, atol=0.092)  # 4 standard deviations


def test_translation_shifts_by_every_whole_number_of_pixels_up_to_an_eighth(sample):
    padded = np.pad(FACE, [(4, 4), (4, 4), (0, 0)])
    shifts = {(y, x): padded[4 + y : 32 + y, 4 + x : 32 + x] for y in range(-4, 5) for x in range(-4, 5)}
    found = [
        [shift for shift, image in shifts.items() if (result == image).all()] for result in sample(augment.translation)
    ]
    assert all(len(matches) == 1 for matches in found)
    down, across = zip(*(matches[0] for matches in found), strict=True)
    assert set(down) == set(across) == set(range(-4, 5))
    assert abs(np.corrcoef(down, across)[0, 1]) < 0.2


def test_pictures_that_are_not_square_move_and_lose_an_eighth_and_half_of_each_side(sample):
    face = np.random.default_rng(0).uniform(0.1, 1, (16, 32, 1)).astype(np.float32)
    grey = sample(augment.translation, face=face)[..., 0] == 0
    assert grey.all(axis=2).sum(axis=1).max() == 2 and grey.all(axis=1).sum(axis=1).max() == 4
    grey = sample(augment.cutout, face=face)[..., 0] == 0
    assert grey.any(axis=2).sum(axis=1).max() == 8 and grey.any(axis=1).sum(axis=1).max() == 16


def test_cutout_greys_half_of_the_side_around_any_pixel(sample):
    results = sample(augment.cutout)
    grey = (results == 0).all(axis=3)
    assert ((results == FACE) | grey[..., None]).all()
    rows, columns = grey.any(axis=2).sum(axis=1), grey.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(grey.sum(axis=(1, 2)), rows * columns)  # rectangles
    assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (7, 14)
    assert grey.mean(axis=0).min() > 0.02  # every pixel is hidden at times


def test_color_changes_brightness_saturation_and_contrast_of_whole_images(sample):
    # Columns of red and of grey pixels: the result tells all three factors.
    face = np.zeros((28, 28, 3), np.float32)
    face[:, ::2] = 0.2, -0.1, -0.1
    face[:, 1::2] = 0.4, 0.4, 0.4
    results = sample(augment.color, 1000, face).astype(np.float64)
    brightness = results.mean(axis=(1, 2, 3)) - face.mean()
    contrast = (results.mean(axis=3)[:, 0, 1] - results.mean(axis=3)[:, 0, 0]) / 0.4
    saturation = (results[:, 0, 0, 0] - results[:, 0, 0, 1]) / 0.3 / contrast
    for values, low, high in ((brightness, -0.5, 0.5), (saturation, 0, 2), (contrast, 0.5, 1.5)):
        assert low - 1e-3 < values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() < high + 1e-3
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.04 * (high - low))
    expected = face + brightness[:, None, None, None]
    mean = expected.mean(axis=3, keepdims=True)
    expected = mean + saturation[:, None, None, None] * (expected - mean)
    whole = expected.mean(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(results, whole + contrast[:, None, None, None] * (expected - whole), atol=1e-5)


def test_instance_noise_is_normal_with_its_standard_deviation(sample):
    noise = sample(lambda images: augment.augment(replace(OREILLY, instance_noise=0.1), images), 50) - FACE
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 0.1], atol=1e-3)
    np.testing.assert_allclose(np.mean(np.abs(noise) < 0.1), 0.6827, atol=0.01)


def test_without_settings_images_stay_as_they_are():
    images = tf.constant(FACE[None])
    assert augment.augment(OREILLY, images) is images


def test_a_policy_makes_its_changes_in_order(sample):
    face = np.ones((28, 28, 3), np.float32)
    system = replace(OREILLY, augment='color-translation-cutout')
    results = sample(lambda images: augment.augment(system, images), 50, face)
    # Of a uniform face only the brightness can change; what is uncovered or cut out stays 0, so colours came first.
    for result in results:
        values = np.unique(result.round(5))
        assert set(values) <= {0, values[-1]} and 0.5 <= values[-1] <= 1.5
    assert (results == 0).mean() > 0.1


@pytest.mark.parametrize('probability', [0, 0.3, 1])
def test_an_adaptive_augmentation_changes_images_with_its_probability(sample, monkeypatch, probability):
    monkeypatch.setattr(augment, 'adaptive_probability', lambda: tf.constant(probability, tf.float32))
    system = replace(OREILLY, augment='color', augment_target=0.6)
    changed = (sample(lambda images: augment.augment(system, images)) != FACE).any(axis=(1, 2, 3))
    np.testing.assert_allclose(changed.mean(), probability, atol=0.092 * (0 < probability < 1))  # 4 standard deviations


def test_the_probability_rises_while_the_discriminator_is_ahead_and_falls_otherwise():
    system = replace(OREILLY, augment='color', augment_target=0.6, batch_size=30_000)
    d_real = tf.placeholder(tf.float32, [None, 1])
    probability, adapted = augment.adaptive_probability(), augment.adapt(system, d_real)
    # mean(sign(D(x) - 1/2)) is 0.8 and 0.4: nine and seven of ten real images are judged as real.
    ahead, behind = ([[0.9]] * right + [[0.2]] * (10 - right) for right in (9, 7))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        values = [session.run(probability)]
        values += [session.run(adapted, {d_real: scores}) for scores in [behind, *[ahead] * 4, behind]]
    np.testing.assert_allclose(values, [0, 0, 0.3, 0.6, 0.9, 1, 0.7], atol=1e-6)


def test_changes_depend_on_the_step(sample):
    now, again, later = np.split(sample(augment.translation, 20, steps=(3, 3, 4)), 3)
    np.testing.assert_array_equal(now, again)
    assert (now != later).any()


def test_gradients_pass_through_every_augmentation(rng, evaluate):
    image = tf.constant(np.tile(FACE, (4, 1, 1, 1)))
    weights = rng.standard_normal((4, 28, 28, 3), np.float32)
    system = replace(OREILLY, augment='color-translation-cutout', instance_noise=0.1)
    (through_all,) = tf.gradients(tf.reduce_sum(augment.augment(system, image) * weights), image)
    shifted = augment.translation(image)
    (gradient,) = tf.gradients(tf.reduce_sum(shifted * weights), image)
    through_all, shifted, gradient = evaluate(through_all, shifted, gradient)
    assert np.abs(through_all).max() > 0 and np.isfinite(through_all).all()
    # The gradient of a shift is the weights shifted back, of the pixels that are still in sight.
    assert set(gradient[gradient != 0].round(5)) <= set(weights.round(5).ravel())
    np.testing.assert_array_equal((gradient != 0).sum(axis=(1, 2, 3)), (shifted != 0).sum(axis=(1, 2, 3)))
