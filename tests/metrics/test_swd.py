import math

import numpy as np
import pytest

from metrics import ms_ssim, nearest, swd

RNG = np.random.default_rng(0)


def noise(count, side=28):
    return RNG.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def constant(*colours, side=28):
    """One image in each of `colours`, a grey level or (red, green, blue)."""
    images = np.zeros((len(colours), side, side, 3), np.uint8)
    for image, colour in zip(images, colours, strict=True):
        image[:] = colour
    return images


def impulse(row, column, value, side=16):
    image = np.zeros((1, side, side, 3), np.float32)
    image[0, row, column] = value
    return image


def halved(images):
    return swd.blurred(images)[:, ::2, ::2]


# --- the pyramid


def test_an_image_is_blurred_with_the_binomial_filter_before_it_is_halved():
    even = halved(impulse(6, 6, 256))[0, :, :, 1]
    expected = np.zeros((8, 8))
    expected[2:5, 2:5] = [[1, 6, 1], [6, 36, 6], [1, 6, 1]]  # every second of [1 4 6 4 1], and their products
    np.testing.assert_array_equal(even, expected)
    odd = halved(impulse(7, 6, 256))[0, :, :, 1]
    expected = np.zeros((8, 8))
    expected[3:5, 2:5] = [[4, 24, 4], [4, 24, 4]]
    np.testing.assert_array_equal(odd, expected)


def test_borders_are_reflected_at_the_outermost_pixel():
    assert halved(impulse(0, 0, 256))[0, 0, 0, 0] == 6 * 6  # which occurs once
    assert halved(impulse(1, 0, 256))[0, 0, 0, 0] == (4 + 4) * 6  # and the next one on both sides of it
    assert halved(impulse(2, 2, 256))[0, 0, 0, 0] == (1 + 1) * (1 + 1)


def test_an_image_is_doubled_with_four_times_the_same_filter():
    doubled = swd.upsampled(impulse(3, 3, 64, side=8))[0, :, :, 2]
    row = np.array([1, 4, 6, 4, 1])
    expected = np.zeros((16, 16))
    expected[4:9, 4:9] = np.outer(row, row)
    np.testing.assert_array_equal(doubled, expected)


@pytest.mark.parametrize(('side', 'sides'), [(28, [28, 14]), (64, [64, 32, 16]), (128, [128, 64, 32, 16])])
def test_the_pyramid_ends_with_14_or_16_pixels_and_adds_up_to_the_image(side, sides):
    images = noise(2, side)
    levels = swd.laplacian_pyramid(images)
    assert [level.shape for level in levels] == [(2, side, side, 3) for side in sides]
    rebuilt = levels[-1]
    for level in levels[-2::-1]:
        rebuilt = level + swd.upsampled(rebuilt)
    np.testing.assert_allclose(rebuilt, images, atol=1e-3)


def test_a_constant_image_is_in_the_last_level_alone():
    fine, coarse = swd.laplacian_pyramid(constant((10, 200, 90)))
    assert (fine == 0).all() and (coarse == (10, 200, 90)).all()


# --- the sliced Wasserstein distance


def test_descriptors_are_patches_of_a_level_normalised_by_channel():
    images, corners = noise(5, 14), RNG.integers(0, 8, (5, 4, 2))  # 14x14 images are their only level
    patches = []
    for image, places in zip(images.astype(float), corners, strict=True):
        patches += [image[row : row + 7, column : column + 7] for row, column in places]
    patches = np.array(patches)
    for channel in range(3):
        values = patches[..., channel]
        patches[..., channel] = (values - values.mean()) / values.std()
    expected = patches.transpose(0, 3, 1, 2).reshape(20, 147)
    np.testing.assert_allclose(swd.descriptors(images, 0, corners), expected, atol=1e-5)


def test_in_one_dimension_the_distance_is_between_sorted_values():
    points = RNG.standard_normal((50, 1)).astype(np.float32)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(swd.sliced_wasserstein(points, points[::-1] + 3, rng), 3, rtol=1e-6)
    a, b = (np.array(values, np.float32)[:, None] for values in ([0, 1, 2, 9], [2, 0, 9, 7]))
    np.testing.assert_allclose(swd.sliced_wasserstein(a, b, rng), (0 + 1 + 5 + 0) / 4, rtol=1e-6)


def test_a_shift_in_three_dimensions_counts_half():
    points = RNG.standard_normal((40, 3)).astype(np.float32)
    moved = points + np.array([2, 3, 6], np.float32)  # by 7; each coordinate of a direction is uniform in -1..1
    distance = swd.sliced_wasserstein(points, moved, np.random.default_rng(0))
    np.testing.assert_allclose(distance, 7 / 2, rtol=0.08)


def test_the_order_of_vectors_does_not_matter():
    a, b = RNG.standard_normal((2, 60, 10)).astype(np.float32)
    same, shuffled = (swd.sliced_wasserstein(x, b, np.random.default_rng(0)) for x in (a, RNG.permutation(a)))
    np.testing.assert_allclose(same, shuffled, rtol=1e-5)


def test_the_distance_of_images_of_one_colour_each_is_the_known_one():
    # The normalised coarse level is -1 and 1 in one set, and -sqrt(2), 0, 0, sqrt(2) in the other. So sorted values
    # differ by sqrt(2) - 1 or by 1, times the sum of a direction's 147 components, whose mean size is also known.
    distances = swd.swd(constant(0, 0, 200, 200), constant(100, 0, 200, 100))
    size = math.sqrt(147 / math.pi) * math.exp(math.lgamma(147 / 2) - math.lgamma(148 / 2))
    assert list(distances) == ['28x28', '14x14'] and distances['28x28'] == 0
    np.testing.assert_allclose(distances['14x14'], 1000 * math.sqrt(2) / 2 * size, rtol=0.1)


def test_the_distance_is_0_for_equal_sets_and_small_for_similar_ones():
    images = noise(60)
    assert swd.swd(images, images) == {'28x28': 0, '14x14': 0}
    alike = swd.swd(images[:30], images[30:])
    striped = swd.swd(images[:30], images[30:, :1].repeat(28, axis=1))
    assert all(2 * alike[level] < striped[level] for level in alike)


def test_images_may_be_grey_and_need_not_be_square():
    images = noise(60, 64)[:, :, :40, :1]
    assert swd.swd(images, images) == {'64x40': 0, '32x20': 0}
    assert [level.shape for level in swd.laplacian_pyramid(images)] == [(60, 64, 40, 1), (60, 32, 20, 1)]
    assert [level.shape[1] for level in swd.laplacian_pyramid(noise(2, 58))] == [58, 29]
    indices, distances = nearest.nearest(images[10:12], images, np.arange(60))
    assert indices.tolist() == [10, 11] and not distances.any()
    np.testing.assert_allclose(ms_ssim.ms_ssim(images, images), 1, rtol=1e-5)


def test_the_larger_set_is_cut_and_the_seed_matters():
    a, b = noise(20), noise(30)
    assert swd.swd(a, b) == swd.swd(a, b[:20])
    np.testing.assert_allclose(list(swd.swd(b, a).values()), list(swd.swd(a, b).values()), rtol=1e-5)
    assert swd.swd(a, b, seed=1) != swd.swd(a, b)


# --- MS-SSIM


def plain_ms_ssim(left, right, weights):
    """The formulas of Wang et al. (2003) for one channel, (H, W) in 0..255, pixel by pixel."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2, result = (0.01 * 255) ** 2, (0.03 * 255) ** 2, 1
    for scale, weight in enumerate(weights):
        structures, similarities = [], []
        for row in range(len(left) - 10):
            for column in range(len(left) - 10):
                x, y = (image[row : row + 11, column : column + 11] for image in (left, right))
                mean_x, mean_y = (window * x).sum(), (window * y).sum()
                variances = (window * (x - mean_x) ** 2).sum() + (window * (y - mean_y) ** 2).sum()
                structure = (2 * (window * (x - mean_x) * (y - mean_y)).sum() + c2) / (variances + c2)
                structures.append(structure)
                similarities.append(structure * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1))
        result *= max(0, np.mean(similarities if scale == len(weights) - 1 else structures)) ** weight
        left, right = (image.reshape(len(image) // 2, 2, -1, 2).mean(axis=(1, 3)) for image in (left, right))
    return result


@pytest.mark.parametrize(('side', 'weights'), [(28, [0.0448, 0.2856]), (64, [0.0448, 0.2856, 0.3001])])
def test_ms_ssim_follows_the_paper_on_the_scales_that_fit(side, weights):
    left = noise(2, side)
    right = (left * 0.7 + noise(2, side) * 0.2).astype(np.uint8)
    weights = np.array(weights) / sum(weights)
    expected = [
        np.mean([plain_ms_ssim(a[..., channel].astype(float), b[..., channel].astype(float), weights)
                 for channel in range(3)])
        for a, b in zip(left, right, strict=True)
    ]  # fmt: skip
    assert min(expected) > 0.3 and max(expected) < 0.99
    np.testing.assert_allclose(ms_ssim.ms_ssim(left, right), expected, rtol=1e-4)


def test_ms_ssim_of_equal_images_is_1_and_of_single_colours_depends_on_luminance_alone():
    images = noise(3)
    np.testing.assert_allclose(ms_ssim.ms_ssim(images, images), 1, atol=1e-6)
    c1 = (0.01 * 255) ** 2
    luminance = np.array([(2 * 100 * 50 + c1) / (100**2 + 50**2 + c1), c1 / (255**2 + c1)])
    expected = luminance ** (0.2856 / (0.0448 + 0.2856))
    np.testing.assert_allclose(ms_ssim.ms_ssim(constant(100, 0), constant(50, 255)), expected, rtol=1e-3)


def test_varied_images_have_a_lower_mean_ms_ssim():
    one = noise(1)
    np.testing.assert_allclose(ms_ssim.mean_ms_ssim(one.repeat(10, axis=0)), 1, atol=1e-6)
    alike, varied = noise(40) // 2 + one // 2, noise(40)
    assert ms_ssim.mean_ms_ssim(varied) < 0.1 < 0.3 < ms_ssim.mean_ms_ssim(alike) < 0.9
    assert ms_ssim.mean_ms_ssim(alike) == ms_ssim.mean_ms_ssim(alike) != ms_ssim.mean_ms_ssim(alike, seed=1)


# --- subsets and nearest neighbours


def test_a_subset_is_in_order_always_the_same_and_complete_where_possible():
    indices = np.arange(5, 100)
    some = swd.subset(indices, 20)
    assert len(set(some)) == 20 and set(some) <= set(indices) and (np.diff(some) > 0).all()
    np.testing.assert_array_equal(some, swd.subset(indices, 20))
    np.testing.assert_array_equal(swd.subset(indices, 1000), indices)


def test_the_distance_is_the_root_mean_square_difference():
    faces = constant(10, (203, 100, 100), 250)
    indices, distances = nearest.nearest(constant(14, (200, 100, 104)), faces, np.arange(3))
    assert indices.tolist() == [0, 1]
    np.testing.assert_allclose(distances, [4, math.sqrt((3**2 + 4**2) / 3)])


def test_copies_are_found_at_distance_0_among_the_candidates():
    faces, candidates = noise(300), np.arange(1, 300, 2)
    copied = RNG.permutation(candidates)[:20]
    indices, distances = nearest.nearest(faces[copied], faces, candidates)
    assert indices.tolist() == copied.tolist() and (distances == 0).all()
    indices, distances = nearest.nearest(faces[:10:2], faces, candidates)
    assert set(indices) <= set(candidates) and (distances > 0).all()


def test_the_nearest_face_has_the_smallest_of_all_differences():
    images, faces = noise(20, 14), noise(100, 14)  # at 14 pixels nothing is blurred
    differences = images[:, None].astype(float) - faces[None]
    expected = np.sqrt((differences**2).mean(axis=(2, 3, 4)))
    indices, distances = nearest.nearest(images, faces, np.arange(100))
    assert indices.tolist() == expected.argmin(axis=1).tolist()
    np.testing.assert_allclose(distances, expected.min(axis=1), rtol=1e-6)


def test_fine_detail_does_not_matter():
    image = constant(100)
    striped = image.copy()
    striped[:, ::2], striped[:, 1::2] = 60, 140
    _, distances = nearest.nearest(striped, image, np.array([0]))
    assert distances < 1  # the stripes differ by 40


def test_results_do_not_depend_on_the_size_of_chunks(monkeypatch):
    def results():
        indices, distances = nearest.nearest(a, b, np.arange(50))
        return [*swd.swd(a, b).values(), ms_ssim.mean_ms_ssim(a), *indices, *distances]

    a, b = noise(30), noise(50)
    together = results()
    monkeypatch.setattr(swd, 'PIXELS_AT_ONCE', 7 * 28 * 28)
    np.testing.assert_allclose(results(), together, rtol=1e-5)
