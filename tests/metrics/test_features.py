import numpy as np
import pytest

from metrics.features import NEIGHBOURS, WEIGHTS, coverage, extract, frechet_distance
from sampling.generator import PRETRAINED, draw_faces


@pytest.fixture(scope='module')
def faces():
    return np.concatenate(list(draw_faces(PRETRAINED, 300, seed=0)))


def test_the_frechet_distance_of_independent_normal_features_is_the_published_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, (200_000, 3)), rng.normal(0, 1, (200_000, 3))
    np.testing.assert_allclose(frechet_distance(a, b), 3 * (1 - 0) ** 2 + 3 * (2 - 1) ** 2, rtol=0.02)


def test_the_frechet_distance_agrees_with_the_eigenvalues_of_the_product_of_the_covariances():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) + 1
    covariances = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * root
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(a, a), 0, atol=1e-9)


def test_coverage_counts_the_faces_within_reach_of_a_neighbourhood():
    rng = np.random.default_rng(0)
    faces, others = rng.normal(size=(30, 2)), rng.normal(size=(20, 2)) + 0.5
    inside = 0
    for face in faces:
        for other in others:
            radius = sorted(np.linalg.norm(other - third) for third in others)[NEIGHBOURS]
            if np.linalg.norm(face - other) <= radius:
                inside += 1
                break
    assert 0 < inside < 30 and coverage(faces, others) == inside / 30
    assert coverage(faces, faces) == 1 and coverage(faces, others + 100) == 0
    assert coverage(faces[:2], faces[:2]) == 1  # fewer than NEIGHBOURS


def test_features_of_a_face_do_not_depend_on_the_others_nor_on_its_colour_channels(faces):
    together, attributes = extract(faces)
    assert together.shape == (300, 128) and attributes.shape == (300, 40)
    np.testing.assert_allclose(extract(faces[7:8])[0], together[7:8], atol=1e-4)
    grey = faces[:5, :, :, :1]
    np.testing.assert_allclose(extract(grey)[0], extract(grey.repeat(3, axis=3))[0], atol=1e-4)


def test_the_attributes_that_it_names_are_those_of_a_face(faces):
    """A mean of smiling faces smiles; mirrored faces have the same attributes, nearly."""
    with np.load(WEIGHTS) as saved:
        names = saved['attributes'].tolist()
    assert len(names) == 40 and {'Smiling', 'Male', 'Eyeglasses', 'Young'} <= set(names)
    known, mirrored = extract(faces)[1], extract(faces[:, :, ::-1])[1]
    assert 0.2 < known[:, names.index('Smiling')].mean() < 0.8
    agree = (known > 0.5) == (mirrored > 0.5)
    assert agree.mean() > 0.9


def test_worse_faces_are_further_away(faces):
    half, other = (extract(part)[0] for part in (faces[:150], faces[150:]))
    noise = np.random.default_rng(0).integers(0, 256, (150, 28, 28, 3), dtype=np.uint8)
    noisy = (faces[150:] + np.random.default_rng(1).integers(-40, 41, (150, 28, 28, 3))).clip(0, 255).astype(np.uint8)
    near, further, far = (frechet_distance(each, half) for each in (other, extract(noisy)[0], extract(noise)[0]))
    assert near < further < far
