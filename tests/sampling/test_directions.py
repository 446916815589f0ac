from dataclasses import replace

import numpy as np
import pytest

import dcgan
from graph.session import open_session, tf
from sampling.directions import NOISE, add_up, first_layer, strongest_directions, sum_of_faces, surrounded, walk
from sampling.generator import PRETRAINED, Generator, draw, restored_generator
from sampling.latents import sample_latents
from systems import SYSTEMS, Layer

RNG = np.random.default_rng(0)


def test_the_first_layer_includes_its_batch_normalisation():
    with restored_generator(PRETRAINED) as generator:
        z = sample_latents(generator.system, RNG, 2)
        weights = first_layer(generator)
        normalized = generator.session.graph.get_tensor_by_name('generator/layer1/batch_norm/batchnorm/add_1:0')
        outputs = generator.session.run(normalized, {generator.z: z}).reshape(2, -1)
    assert weights.shape == (109, 7 * 7 * 256)
    np.testing.assert_allclose(outputs[1] - outputs[0], (z[1] - z[0]) @ weights, atol=1e-4)


def test_a_first_layer_without_batch_normalisation_is_its_kernel():
    system = replace(SYSTEMS['kdnuggets'], generator=(Layer('dense', (2, 2, 3)),), latent_size=5)
    with tf.Graph().as_default(), open_session() as session:
        z = tf.placeholder(tf.float32, [None, 5])
        images = dcgan.generator(system, z, training=False)
        session.run(tf.global_variables_initializer())
        weights = first_layer(Generator(None, system, session, z, images))
        np.testing.assert_array_equal(weights, session.run(tf.global_variables()[0]))
    assert weights.shape == (5, 12)


def test_the_strongest_directions_are_the_eigenvectors_with_the_largest_eigenvalues():
    weights = RNG.standard_normal((6, 20))
    directions, fractions = strongest_directions(weights, 3)
    eigenvalues, eigenvectors = np.linalg.eigh(weights @ weights.T)
    np.testing.assert_allclose(np.abs(np.sum(directions * eigenvectors.T[:-4:-1], axis=1)), 1)
    np.testing.assert_allclose(fractions, eigenvalues[:-4:-1] / eigenvalues.sum())
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(strongest_directions(-weights, 3)[0], directions)  # the sign is not left to chance


def test_faces_change_more_along_the_strongest_direction_than_along_others():
    with restored_generator(PRETRAINED) as generator:
        directions, _ = strongest_directions(first_layer(generator), 100)
        z = sample_latents(generator.system, RNG, 16)
        walks = np.concatenate([walk(generator.system, z, direction) for direction in directions[[0, 50, 99]]])
        faces = np.concatenate(list(draw(generator.session, generator.z, generator.images, walks.reshape(-1, 109))))
    faces = faces.reshape(3, 16, walks.shape[1], -1).astype(float)
    strongest, middle, weakest = np.abs(faces[:, :, -1] - faces[:, :, 0]).mean(axis=(1, 2))
    assert strongest > 2 * middle > 3 * weakest


@pytest.mark.parametrize(('system', 'deviation'), [('oreilly', 3**-0.5), ('ranjan', 1)])
def test_a_walk_goes_both_ways_from_each_latent(system, deviation):
    latents, direction = RNG.standard_normal((4, 3)), np.array([0.6, 0, -0.8])
    path = walk(SYSTEMS[system], latents, direction)
    assert path.shape == (4, 5, 3)
    np.testing.assert_array_equal(path[:, 2], latents)
    for index, steps in enumerate((-2, -1, 0, 1, 2)):
        np.testing.assert_allclose(path[:, index], latents + steps * deviation * direction)


def test_a_sum_of_faces_adds_and_subtracts_the_means_of_its_terms():
    latents = RNG.standard_normal((9, 4)).astype(np.float32)
    means, result = add_up(latents, [(1, [3, 8]), (-1, [0]), (1, [3, 1, 2])])
    expected = [(latents[3] + latents[8]) / 2, latents[0], (latents[3] + latents[1] + latents[2]) / 3]
    np.testing.assert_allclose(means, expected, rtol=1e-5)
    np.testing.assert_allclose(result, expected[0] - expected[1] + expected[2], rtol=1e-5)


def test_the_result_is_in_the_middle_of_latents_near_it():
    latent = RNG.standard_normal(50).astype(np.float32)
    nine = surrounded(latent, np.random.default_rng(0))
    assert nine.shape == (9, 50)
    np.testing.assert_array_equal(nine[4], latent)
    differences = np.delete(nine, 4, axis=0) - latent
    assert np.abs(differences).max() <= NOISE + 1e-6
    np.testing.assert_allclose(differences.std(), NOISE / 3**0.5, rtol=0.1)


@pytest.mark.parametrize(
    ('text', 'terms'),
    [
        ('3,8,12 - 5,9,1 + 7,2,4', [(1, [3, 8, 12]), (-1, [5, 9, 1]), (1, [7, 2, 4])]),
        (' 3', [(1, [3])]),
        ('-3+ 4 ,5', [(-1, [3]), (1, [4, 5])]),
    ],
)
def test_a_sum_of_faces_has_signs_and_indices(text, terms):
    assert sum_of_faces(text) == terms
