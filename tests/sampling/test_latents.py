import numpy as np
import pytest

from common.cli import UserError
from sampling.latents import STEPS_PER_LEG, interpolate, lerp, load_latents, sample_latents, slerp
from systems import SYSTEMS

RNG = np.random.default_rng(0)


def test_latents_have_the_distribution_of_the_article():
    latents = sample_latents(SYSTEMS['oreilly'], np.random.default_rng(0), 5000)
    assert latents.shape == (5000, 100) and latents.dtype == np.float32
    assert -1 <= latents.min() < -0.999 and 0.999 < latents.max() <= 1
    np.testing.assert_allclose([latents.mean(), latents.var()], [0, 1 / 3], atol=0.005)
    latents = sample_latents(SYSTEMS['ranjan'], np.random.default_rng(0), 5000)
    np.testing.assert_allclose([latents.mean(), latents.var(), (latents**4).mean()], [0, 1, 3], atol=0.05)


@pytest.mark.parametrize(('system', 'variance'), [('oreilly', 1 / 3), ('ranjan', 1)])
def test_truncated_latents_have_the_same_direction_and_are_closer_to_zero(system, variance):
    full, half = (sample_latents(SYSTEMS[system], np.random.default_rng(0), 5000, truncate) for truncate in (1.0, 0.5))
    np.testing.assert_allclose(half.var(), variance / 4, rtol=0.02)
    np.testing.assert_allclose(half, full / 2, rtol=1e-6)


@pytest.mark.parametrize('system', ['oreilly', 'ranjan'])
def test_latents_are_the_same_whether_sampled_one_by_one_or_together(system):
    together = sample_latents(SYSTEMS[system], np.random.default_rng(0), 7)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal([sample_latents(SYSTEMS[system], rng, 1)[0] for _ in range(7)], together)


def test_lerp_moves_evenly():
    line = lerp(np.array([0.0, 1.0]), np.array([1.0, -1.0]), np.array([0, 0.25, 1]))
    np.testing.assert_allclose(line, [[0, 1], [0.25, 0.5], [1, -1]])


def test_slerp_follows_the_great_circle():
    x, y = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    root = np.sqrt(0.5)
    np.testing.assert_allclose(slerp(x, y, np.array([0, 0.5, 1])), [[1, 0], [root, root], [0, 1]], atol=1e-12)
    third = slerp(x, y, np.array([1 / 3]))  # of a right angle: 30 degrees
    np.testing.assert_allclose(third, [[np.sqrt(3) / 2, 0.5]])
    np.testing.assert_allclose(np.linalg.norm(slerp(3 * x, 3 * y, np.linspace(0, 1, 9)), axis=1), 3)


@pytest.mark.parametrize(
    ('start', 'end', 'middle'),
    [([1, 2], [1, 2], [1, 2]), ([1, 2], [3, 6], [2, 4]), ([1, 0], [-1, 0], [0, 0]), ([0, 0], [2, 0], [1, 0])],
)
@pytest.mark.filterwarnings('error')
def test_slerp_is_a_straight_line_where_there_is_no_unique_great_circle(start, end, middle):
    np.testing.assert_allclose(slerp(np.array(start), np.array(end), np.array([0.5])), [middle])


@pytest.mark.parametrize(('system', 'between'), [('oreilly', lerp), ('ranjan', slerp)])
def test_an_interpolation_passes_through_every_latent_and_back_to_the_first(system, between):
    latents = np.random.default_rng(0).standard_normal((5, 100)).astype(np.float32)
    path = interpolate(SYSTEMS[system], latents)
    assert path.shape == (5 * STEPS_PER_LEG, 100) and path.dtype == np.float32
    np.testing.assert_array_equal(path[::STEPS_PER_LEG], latents)
    first, second = latents[:2].astype(float)
    np.testing.assert_allclose(path[1:2], between(first, second, np.array([1 / STEPS_PER_LEG])), rtol=1e-5, atol=1e-6)
    steps = np.linalg.norm(np.roll(path, -1, axis=0) - path, axis=1)
    assert steps.max() < 2 * steps.min()  # no jumps, nor from the last to the first


def test_latents_are_read_from_several_files_in_their_order(tmp_path):
    several, one = RNG.standard_normal((3, 5)), RNG.integers(0, 9, 5)
    np.save(tmp_path / 'several.npy', several)
    np.save(tmp_path / 'one.npy', one)
    latents = load_latents([tmp_path / 'one.npy', tmp_path / 'several.npy'], 5)
    assert latents.dtype == np.float32
    np.testing.assert_array_equal(latents, np.vstack([one, several]).astype(np.float32))


@pytest.mark.parametrize(
    ('array', 'problem'),
    [
        (np.zeros((2, 6)), 'expected .* Nx5, found .* 2x6$'),
        (np.zeros(6), 'expected .* Nx5, found .* 1x6$'),
        (np.zeros((1, 2, 5)), 'expected .* Nx5, found .* 1x2x5$'),
        (np.zeros((0, 5)), 'expected .* Nx5, found .* 0x5$'),
        (np.full(5, np.nan), 'latent 0 has a value that is not a number from -1000 to 1000'),
        (np.array([[0.0], [-np.inf]]) + np.zeros(5), 'latent 1 has a value'),
        (np.full(5, 1e300), 'latent 0 has a value'),
        (np.full(5, 2**40), 'latent 0 has a value'),
        (np.full(5, 1j), 'expected real numbers of shape Nx5, found complex128 1x5$'),
        (np.full(5, 'x'), 'expected real numbers of shape Nx5, found <U1 1x5$'),
        (np.full(5, None), 'damaged'),
    ],
)
def test_an_array_of_anything_but_latents_is_an_error_that_names_the_file(tmp_path, array, problem):
    np.save(tmp_path / 'it.npy', array, allow_pickle=True)
    with pytest.raises(UserError, match=rf'it\.npy.* {problem}'):
        load_latents([tmp_path / 'it.npy'], 5)


@pytest.mark.parametrize('content', [b'', b'text', b'\x93NUMPY', 'cut', 'npz', 'large'])
def test_a_damaged_file_of_latents_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / 'it.npy'
    if content == 'npz':
        with open(path, 'wb') as file:
            np.savez(file, latents=np.zeros((2, 5)))
    elif isinstance(content, str):
        np.save(path, np.zeros((2, 5)))
        saved = path.read_bytes()
        path.write_bytes(saved[:-1] if content == 'cut' else saved.replace(b'(2, 5), }      ', b'(2000000000, 5)}'))
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r'it\.npy is not a \.npy file of numbers, or is damaged'):
        load_latents([path], 5)


def test_a_missing_file_of_latents_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match='it.npy'):
        load_latents([tmp_path / 'it.npy'], 5)
