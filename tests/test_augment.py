"""Augmentations, drawn many times, against what their article says: one kind of change, its bounds, its frequency."""

import numpy as np
import pytest

import augment
import dcgan
from runtime import tf
from systems import SYSTEMS

OREILLY = SYSTEMS['oreilly']
FACE = np.random.default_rng(0).uniform(-1, 1, (28, 28, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def graph():
    with tf.Graph().as_default():
        tf.set_random_seed(0)
        yield


def drawn(change, count=400, face=FACE, steps=(0,)):
    """What `change` makes of `count` copies of a face, at these steps: (len(steps) * count, 28, 28, 3)."""
    step = tf.train.get_or_create_global_step()
    changed = change(tf.constant(np.tile(face, (count, 1, 1, 1))))
    with tf.Session() as session:
        results = []
        for number in steps:
            step.load(number, session)
            results.append(session.run(changed))
    return np.concatenate(results)


def test_flip_mirrors_its_share():
    results = drawn(lambda images: augment.flip(images, 0.3))
    mirrored = (results == FACE[:, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (results == FACE).all(axis=(1, 2, 3))).all()
    np.testing.assert_allclose(mirrored.mean(), 0.3, atol=0.092)  # 4 standard deviations


def test_translation_shifts_by_every_whole_number_of_pixels_up_to_an_eighth():
    padded = np.pad(FACE, [(4, 4), (4, 4), (0, 0)])
    shifts = {(y, x): padded[4 + y : 32 + y, 4 + x : 32 + x] for y in range(-4, 5) for x in range(-4, 5)}
    found = [
        [shift for shift, image in shifts.items() if (result == image).all()] for result in drawn(augment.translation)
    ]
    assert all(len(some) == 1 for some in found)
    down, across = zip(*(some[0] for some in found), strict=True)
    assert set(down) == set(across) == {-4, -3, -2, -1, 0, 1, 2, 3} | {4}
    assert abs(np.corrcoef(down, across)[0, 1]) < 0.2


def test_cutout_greys_half_of_the_side_around_any_pixel():
    results = drawn(augment.cutout)
    grey = (results == 0).all(axis=3)
    assert ((results == FACE) | grey[..., None]).all()
    rows, columns = grey.any(axis=2).sum(axis=1), grey.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(grey.sum(axis=(1, 2)), rows * columns)  # rectangles
    assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (7, 14)
    assert grey.mean(axis=0).min() > 0.02  # every pixel is hidden at times


def test_color_changes_brightness_saturation_and_contrast_of_whole_images():
    # A face of one grey and one red pixel column: what becomes of it tells all three factors.
    face = np.zeros((28, 28, 3), np.float32)
    face[:, ::2] = 0.2, -0.1, -0.1
    face[:, 1::2] = 0.4, 0.4, 0.4
    results = drawn(augment.color, 1000, face).astype(np.float64)
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


def test_instance_noise_is_normal_with_its_deviation():
    noise = drawn(lambda images: augment.augment(OREILLY._replace(instance_noise=0.1), images), 50) - FACE
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 0.1], atol=1e-3)
    np.testing.assert_allclose(np.mean(np.abs(noise) < 0.1), 0.6827, atol=0.01)


def test_without_settings_images_stay_as_they_are():
    np.testing.assert_array_equal(
        drawn(lambda images: augment.augment(OREILLY, images), 2), np.tile(FACE, (2, 1, 1, 1))
    )


def test_a_policy_is_its_steps_in_order():
    face = np.ones((28, 28, 3), np.float32)
    results = drawn(
        lambda images: augment.augment(OREILLY._replace(augment='color-translation-cutout'), images), 50, face
    )
    # Of an even face only brightness can change, and what comes in or is cut out stays 0: colours came first.
    for result in results:
        values = np.unique(result.round(5))
        assert set(values) <= {0, values[-1]} and 0.5 <= values[-1] <= 1.5
    assert (results == 0).mean() > 0.1


def test_what_is_drawn_is_decided_by_the_step():
    now, again, later = np.split(drawn(augment.translation, 20, steps=(3, 3, 4)), 3)
    np.testing.assert_array_equal(now, again)
    assert (now != later).any()


def test_the_generator_learns_through_every_augmentation():
    image = tf.constant(np.tile(FACE, (4, 1, 1, 1)))
    system = OREILLY._replace(augment='color-translation-cutout', instance_noise=0.1)
    tf.train.get_or_create_global_step()
    weights = tf.constant(np.random.default_rng(1).standard_normal((4, 28, 28, 3)).astype(np.float32))
    loss = tf.reduce_sum(augment.translation(image) * weights)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        through_all = session.run(tf.gradients(tf.reduce_sum(augment.augment(system, image) * weights), image)[0])
        shifted, gradient, drawn_weights = session.run(
            [augment.translation(image), tf.gradients(loss, image)[0], weights]
        )
    assert np.abs(through_all).max() > 0 and np.isfinite(through_all).all()
    # A shift's gradient is the weights, shifted back: as many of them as pixels of the face that are still in sight.
    assert set(gradient[gradient != 0].round(5)) <= set(drawn_weights.round(5).ravel()) and shifted.shape == image.shape


@pytest.mark.parametrize('augmentation', ['none', 'color-translation'])
def test_real_and_generated_images_are_augmented_and_samples_are_not(monkeypatch, augmentation):
    seen = []
    monkeypatch.setattr(augment, 'translation', lambda images: seen.append(images) or images)
    system = OREILLY._replace(augment=augmentation)
    real, z, rate = dcgan.model_inputs(28, 28, 3, 100)
    dcgan.model_opt(system, dcgan.model_loss(system, real, z), rate)
    dcgan.generator(system, z, training=False, reuse=True)
    assert len(seen) == (3 if augmentation != 'none' else 0)  # real and generated, and those of the generator's update
