"""The published crop, the prepared faces, the batches of an epoch, the grid."""

import io
import zipfile

import numpy as np
import pytest
from conftest import celeb_a
from PIL import Image

import helper
from dataset import DataError, download
from dataset.source import Source

# --- The archive


def test_the_archive_is_downloaded_to_its_official_name(tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'WAITS', ())
    with pytest.raises(DataError, match=r'127\.0\.0\.1:1/dead.*img_align_celeba\.zip'):
        helper.download_celeb_a(tmp_path, ['http://127.0.0.1:1/dead'])
    archive = tmp_path / 'img_align_celeba.zip'
    archive.write_bytes(b'PK')
    with pytest.raises(DataError, match='2 bytes.*1443490838'):
        helper.download_celeb_a(tmp_path)
    monkeypatch.setattr(helper, 'CELEB_A_SIZE', 2)
    assert helper.download_celeb_a(tmp_path, []) == archive


# --- The crop


def save_random(path, width, height) -> np.ndarray:
    """Save an image of random pixels and return them."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_the_crop_of_178x218_is_the_central_108x108(tmp_path):
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[55:163, 35:143] = (10, 200, 90)  # rows (218 - 108) / 2, columns (178 - 108) / 2
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    face = helper.get_image(tmp_path / 'image.png', 28, 28)
    assert face.shape == (28, 28, 3) and face.dtype == np.uint8
    assert (face == (10, 200, 90)).all()
    pixels[55, 35] = pixels[162, 142] = 0  # the corners belong to the crop
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    face = helper.get_image(tmp_path / 'image.png', 108, 108)
    assert (face[0, 0] == 0).all() and (face[-1, -1] == 0).all() and (face != (10, 200, 90)).any(axis=2).sum() == 2


def test_the_crop_at_half_resolution_is_the_central_54x54(tmp_path):
    pixels = save_random(tmp_path / 'image.png', 89, 109)
    np.testing.assert_array_equal(helper.get_image(tmp_path / 'image.png', 54, 54), pixels[27:81, 17:71])


@pytest.mark.parametrize(
    'height, width, crop, rows, columns',
    [
        (218, 178, 178, slice(20, 198), slice(0, 178)),  # (218 - 178) / 2
        (109, 89, 178, slice(10, 99), slice(0, 89)),
        (218, 178, 100, slice(59, 159), slice(39, 139)),
        (436, 356, 50, slice(168, 268), slice(128, 228)),  # an image twice as large has a crop twice as large
        (218, 178, 1, slice(108, 109), slice(88, 89)),
        (218, 177, 50, slice(20, 197), slice(0, 177)),  # not an aligned image: the largest square, whatever the crop
    ],
)
def test_another_crop_of_an_aligned_image_is_the_central_square_of_that_side(
    tmp_path, height, width, crop, rows, columns
):
    expected = save_random(tmp_path / 'image.png', width, height)[rows, columns]
    face = helper.get_image(tmp_path / 'image.png', *expected.shape[1::-1], crop=crop)
    np.testing.assert_array_equal(face, expected)


@pytest.mark.parametrize('width, height', [(60, 40), (40, 60), (40, 40), (1, 1), (3000, 1)])
def test_the_crop_of_any_other_image_is_the_central_square(tmp_path, width, height):
    pixels = save_random(tmp_path / 'image.png', width, height)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    face = helper.get_image(tmp_path / 'image.png', side, side)
    np.testing.assert_array_equal(face, pixels[top : top + side, left : left + side])


@pytest.mark.parametrize(
    'width, height, face_width, face_height, rows, columns',
    [
        (178, 218, 81, 108, slice(55, 163), slice(48, 129)),  # within the square of 108
        (178, 218, 108, 54, slice(82, 136), slice(35, 143)),
        (60, 40, 20, 40, slice(0, 40), slice(20, 40)),  # the largest of all
        (60, 40, 60, 20, slice(10, 30), slice(0, 60)),
        (50, 100, 50, 40, slice(30, 70), slice(0, 50)),
    ],
)
def test_the_crop_for_faces_that_are_not_square_has_their_proportions(
    tmp_path, width, height, face_width, face_height, rows, columns
):
    expected = save_random(tmp_path / 'image.png', width, height)[rows, columns]
    np.testing.assert_array_equal(helper.get_image(tmp_path / 'image.png', face_width, face_height), expected)


def test_grey_faces_have_the_luma_of_coloured_ones(tmp_path):
    pixels = save_random(tmp_path / 'image.png', 40, 40)
    grey = helper.get_image(tmp_path / 'image.png', 40, 40, channels=1)
    assert grey.shape == (40, 40, 1)
    np.testing.assert_allclose(grey[..., 0], pixels @ [0.299, 0.587, 0.114], atol=0.6)
    Image.fromarray(grey[..., 0]).save(tmp_path / 'grey.png')
    np.testing.assert_array_equal(helper.get_image(tmp_path / 'grey.png', 40, 40, channels=1), grey)


def test_grey_and_oblong_faces_are_prepared_beside_the_others(pictures, tmp_path):
    for size, channels, shape in ((28, 3, (28, 28, 3)), (28, 1, (28, 28, 1)), ((32, 24), 1, (32, 24, 1))):
        for _ in range(2):
            loaded = helper.load_faces(pictures, size, tmp_path, 108, channels)
            assert loaded.faces.shape == (44, *shape) and len(loaded.names) == 44
    assert len(list(tmp_path.glob('*.npy'))) == 3 and len(list(tmp_path.glob('pictures-32x24-*.npy'))) == 1


def published_crop(image) -> np.ndarray:
    return np.asarray(image.crop((35, 55, 143, 163)).resize((28, 28), Image.Resampling.BILINEAR))


def test_the_crop_of_real_full_size_faces_is_the_published_one(tmp_path):
    files = sorted(celeb_a('CELEBA_FULL_SIZE').glob('*.jpg'))
    assert len(files) == 10
    differences = []
    for file in files:
        with Image.open(file) as image:
            published = published_crop(image)
            image.save(tmp_path / 'lossless.png')
        np.testing.assert_array_equal(helper.get_image(tmp_path / 'lossless.png', 28, 28), published)
        differences.append(helper.get_image(file, 28, 28).astype(int) - published)  # decoded at half its size
    differences = np.abs(differences)
    assert 0 < differences.mean() < 1 and (differences > 8).mean() < 0.01


@pytest.mark.parametrize('crop, max_difference', [(108, 1), (178, 1.5)])  # a larger crop is decoded at a smaller size
def test_a_jpeg_decoded_at_reduced_size_shows_the_same_crop(tmp_path, crop, max_difference):
    rng = np.random.default_rng(0)
    for width, height in ((178, 218), (181, 222), (1000, 700), (700, 1001), (267, 327)):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        picture = small.resize((width, height), Image.Resampling.BICUBIC)
        for orientation in (1, 6):
            exif = Image.Exif()
            exif[0x0112] = orientation
            picture.save(tmp_path / 'image.jpg', quality=100, subsampling=0, exif=exif)
            picture.save(tmp_path / 'image.png', exif=exif)
            reduced, full = (
                helper.get_image(tmp_path / f'image.{suffix}', 28, 28, crop).astype(int) for suffix in ('jpg', 'png')
            )
            assert np.abs(reduced - full).mean() < max_difference, (width, height, orientation)


# --- The faces


def test_a_real_archive_becomes_its_published_crops(tmp_path):
    faces = helper.load_faces(celeb_a('CELEBA_ZIP'), 28, tmp_path).faces
    with zipfile.ZipFile(celeb_a('CELEBA_ZIP')) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith('.jpg'))
        assert faces.shape == (len(names), 28, 28, 3)
        for index in range(0, len(names), 500):
            with Image.open(io.BytesIO(archive.read(names[index]))) as image:
                side = image.width * 108 // 178
                left, top = (image.width - side) // 2, (image.height - side) // 2
                crop = image.crop((left, top, left + side, top + side)).resize((28, 28), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(faces[index], np.asarray(crop))


def test_an_archive_and_a_folder_give_the_same_faces(tmp_path, pictures):
    with zipfile.ZipFile(pictures) as archive:
        archive.extractall(tmp_path / 'folder')
    from_folder = helper.load_faces(str(tmp_path / 'folder'), 28, str(tmp_path / 'cache')).faces
    from_archive = helper.load_faces(Source(pictures), 28, tmp_path / 'cache').faces
    assert from_archive.shape == (44, 28, 28, 3) and from_archive.dtype == np.uint8
    np.testing.assert_array_equal(from_archive, from_folder)


def test_each_crop_has_a_prepared_array_of_its_own(tmp_path, pictures):
    narrow, wide = (helper.load_faces(pictures, 28, tmp_path, crop).faces for crop in (108, 178))
    assert len(list(tmp_path.glob('*.npy'))) == 2 and (narrow != wide).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(helper.load_faces(pictures, 28, tmp_path).faces, narrow)
    np.testing.assert_array_equal(helper.load_faces(pictures, 28, tmp_path, 178).faces, wide)
    assert len(list(tmp_path.glob('*.npy'))) == 2


# --- Batches


def numbered_faces(count) -> np.ndarray:
    """Faces of 1x2 pixels whose values are their indices."""
    return np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1) * np.ones((1, 1, 2, 3), np.uint8)


def numbers(batch) -> list[int]:
    """The values of the first pixel of each image of a batch, in 0..255 again."""
    return np.rint((batch[:, 0, 0, 0] + 0.5) * 255).astype(int).tolist()


def test_a_batch_is_scaled_to_the_published_range():
    faces = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1) * np.ones((1, 2, 4, 3), np.uint8)
    batch = helper.get_batch(faces, np.array([2, 0, 1]))
    assert batch.dtype == np.float32 and batch.shape == (3, 2, 4, 3)
    np.testing.assert_array_max_ulp(batch[:, 0, 0, 0], np.array([0.5, -0.5, 51 / 255 - 0.5], np.float32))
    product = np.float32(51) * np.float32(1 / 255) - np.float32(0.5)  # an earlier version's values, to the last bit
    assert batch[2, 0, 0, 0] == product != np.float32(51 / 255) - np.float32(0.5)


def test_an_epoch_shows_every_training_face_once_in_an_order_of_seed_and_epoch():
    dataset = helper.Dataset(numbered_faces(100))

    def order(seed, epoch, start=0):
        batches = [helper.get_batch(dataset.faces, each) for each in dataset.get_indices(8, seed, epoch, start)]
        assert start or np.array_equal(batches, list(dataset.get_batches(8, seed, epoch)))
        assert all(batch.shape == (8, 1, 2, 3) and batch.dtype == np.float32 for batch in batches)
        return [number for batch in batches for number in numbers(batch)]

    assert len(order(0, 0)) == len(set(order(0, 0))) == 88  # of the 90 that are not held out
    assert dataset.steps_per_epoch(8) == 11
    assert {number % 10 for number in order(0, 0)} == set(range(9))
    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)
    assert order(0, 1) != sorted(order(0, 1))
    assert order(0, 0, start=5) == order(0, 0)[40:]


def test_the_order_of_an_epoch_never_changes():
    first = next(helper.Dataset(numbered_faces(100)).get_batches(8, seed=3, epoch=2))
    assert numbers(first) == [15, 27, 56, 90, 30, 95, 60, 68]


def test_a_data_set_says_what_is_held_out():
    faces = numbered_faces(20)
    assert str(helper.Dataset(faces, 'none')) == '20 to train on, 0 held out: as in the article'
    assert str(helper.Dataset(faces)).startswith('18 to train on, 2 held out: every tenth image')
    people = helper.Dataset(faces, 'people', ['a'] * 11 + list('bcdefghij'))
    assert str(people) == '19 to train on, 1 held out: every tenth person, with all images'
    assert people.held_out.tolist() == [19]


def test_the_digest_tells_data_sets_apart_and_never_changes():
    faces = np.random.default_rng(0).integers(0, 256, (2500, 4, 4, 3), np.uint8)
    digest = helper.Dataset(faces).digest
    assert digest == '0088810ec85d1003'
    assert helper.Dataset(faces[:-1]).digest != digest
    assert helper.Dataset(faces.reshape(2500, 2, 8, 3)).digest != digest
    faces[3] += 1  # every third face counts
    assert helper.Dataset(faces).digest != digest


# --- The grid


def test_values_outside_the_range_are_clipped():
    images = helper.to_uint8(np.array([-2, -1, 0, 0.5, 1, 2]), (-1, 1))
    assert images.dtype == np.uint8 and images.tolist() == [0, 0, 128, 191, 255, 255]


def test_a_grid_runs_left_to_right_on_one_scale():
    values = np.array([-0.5, -0.25, 0.0, 0.5, 0.9], np.float32)
    images = values.reshape(5, 1, 1, 1) * np.ones((1, 2, 2, 3), np.float32)
    grid = np.asarray(helper.images_square_grid(images, (-0.5, 0.5)))
    assert grid.shape == (4, 6, 3)  # 3 columns, 2 rows
    assert grid[0, ::2, 0].tolist() == [0, 64, 128] and grid[2, ::2, 0].tolist() == [255, 255, 0]
    generated = np.asarray(helper.images_square_grid(images, (-1, 1)))
    assert generated[0, ::2, 0].tolist() == [64, 96, 128]


def test_a_grid_may_have_another_number_of_columns():
    grid = np.asarray(helper.images_square_grid(numbered_faces(5), columns=4))
    assert grid.shape == (2, 8, 3)
    assert grid[:, ::2, 0].tolist() == [[0, 1, 2, 3], [4, 0, 0, 0]]
