"""Data pipeline of the article: download CelebA, crop the faces, make batches, show images in a grid.

Robustness and speed (resumed downloads, damaged images, all cores, the array on disk) live in `dataset/`.
"""

import functools
import hashlib
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.download import download
from dataset.images import crop_and_resize, open_image
from dataset.labels import CELEB_A_TABLE
from dataset.prepared import Prepared, load_prepared
from dataset.source import Source
from dataset.split import HOLD_OUTS, split

CELEB_A = 'img_align_celeba.zip'
CELEB_A_SIZE = 1_443_490_838  # bytes
CELEB_A_MD5 = '00d2c5bc6d35e252742224ab0c1e8fcb'
CELEB_A_SOURCES = (
    'https://drive.usercontent.google.com/download?id=0B7EVK8r0v71pZjFTYXZWM3FlRnM'
    '&resourcekey=0-dYn9z10tMJOBAkviAcfdyQ&export=download&confirm=t',
    'https://s3-us-west-1.amazonaws.com/udacity-dlnfd/datasets/celeba.zip',
)
CELEB_A_TABLE_SIZE = 26_721_026  # bytes
CELEB_A_TABLE_MD5 = '75e246fa4810816ffd6ee81facbd244c'
CELEB_A_TABLE_SOURCES = (
    'https://drive.usercontent.google.com/download?id=0B7EVK8r0v71pblRyaVFSWGxPY0U'
    '&resourcekey=0-YW2qIuRcWHy_1C2VaRGL3Q&export=download&confirm=t',
)
# The article keeps the central 108x108 pixels of an aligned CelebA image of 178x218.
ALIGNED_WIDTH, ALIGNED_HEIGHT, FACE_SIZE = 178, 218, 108
PREPARATION = 'central crop, bilinear, 4'  # names prepared arrays: change it when `get_image` gives other pixels


def download_celeb_a(data_dir: str | Path, sources=CELEB_A_SOURCES) -> Path:
    """Download the official CelebA archive into `data_dir`, unless it is there. `sources` are tried in turn.

    Returns its path. Raises DataError if no URL serves the archive, or if the file there has another size.
    """
    return download(Path(data_dir) / CELEB_A, sources, CELEB_A_SIZE, CELEB_A_MD5)


def download_attributes(data_dir: str | Path, sources=CELEB_A_TABLE_SOURCES) -> Path:
    """Download CelebA's attribute table into `data_dir`, like `download_celeb_a`, and return its path."""
    return download(Path(data_dir) / CELEB_A_TABLE, sources, CELEB_A_TABLE_SIZE, CELEB_A_TABLE_MD5)


def crop_size(image_size: tuple[int, int], face_size: tuple[int, int], crop: int) -> tuple[int, int]:
    """The size of what `get_image` keeps of an image for a face of `face_size`. All sizes are (width, height)."""
    # Of an aligned image, at any resolution, only the central square counts.
    width, height = image_size
    if height == round(width * ALIGNED_HEIGHT / ALIGNED_WIDTH):
        width = height = round(width * crop / ALIGNED_WIDTH)
    # The largest rectangle in it with the proportions of the face.
    scale = min(width / face_size[0], height / face_size[1])
    return max(1, round(face_size[0] * scale)), max(1, round(face_size[1] * scale))


def get_image(image_path, width: int, height: int, crop: int = FACE_SIZE, channels: int = 3) -> np.ndarray:
    """Read the face in an image file (a path or an open file) as uint8 (height, width, channels), bilinear.

    As published, an aligned CelebA image, 178x218, is cropped to its central square of side `crop`, which scales with
    the width at other resolutions; any other image to its largest central square. Faces that are not square get the
    largest central rectangle of their proportions, inside that square or inside the whole other image.
    channels: 3, or 1 for grey. Raises DataError like `dataset.images.open_image`, any exception if broken.
    """
    size = width, height
    with open_image(image_path) as image:
        across, down = crop_size(image.size, size, crop)
        left, top = (image.width - across) // 2, (image.height - down) // 2
        # A JPEG is decoded at the smallest of its scales that leaves `draft_side` at least the length of the face.
        # Relative to the full width, so aligned and other images are decoded at the same scale.
        draft_side = max(crop_size(image.size, size, ALIGNED_WIDTH)) * crop / ALIGNED_WIDTH
        face = crop_and_resize(image, (left, top, left + across, top + down), size, draft_side)
    return np.asarray(face) if channels == 3 else np.asarray(face.convert('L'))[..., np.newaxis]


def load_faces(source: Source | str | Path, image_size, cache_dir: str | Path, crop=FACE_SIZE, channels=3) -> Prepared:
    """Load all faces of a zip archive or a folder of images: `faces`, uint8 (N, height, width, channels), and `names`.

    image_size: (height, width), or the side of squares. crop, channels: see `get_image`.
    They are decoded once, on all cores, and memory-mapped from a .npy file in `cache_dir` from then on.
    Raises DataError if there are no images or too many are unreadable, OSError if a file cannot be read or written.
    """
    source = source if isinstance(source, Source) else Source(source, [cache_dir])
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    read_image = functools.partial(get_image, width=width, height=height, crop=crop, channels=channels)
    # Everything the pixels depend on is part of the name of the array.
    made_with = (crop, PREPARATION) + (('grey',) if channels == 1 else ())
    return load_prepared(source, (height, width, channels), Path(cache_dir), read_image, *made_with)


def first_crop_size(source: Source, face_size: tuple[int, int], crop: int) -> tuple[int, int]:
    """The `crop_size` of the first image of `source`. A broken image can raise any exception."""
    with open_image(io.BytesIO(source.read(source.images[0]))) as image:
        return crop_size(image.size, face_size, crop)


def get_batch(faces: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The faces at `indices` as float32 (n, height, width, channels), scaled from 0..255 to -0.5..0.5."""
    # Multiply, not divide: earlier versions let TensorFlow multiply, and resumed runs must match bit for bit.
    return faces[indices].astype(np.float32) * np.float32(1 / 255) - np.float32(0.5)


class Dataset:
    """Faces, uint8 (N, height, width, channels), and the indices of the training and the held-out faces."""

    def __init__(self, faces: np.ndarray, hold_out='images', people: list[str] | None = None, conditions=None):
        """hold_out, people: see `dataset.split.split`. conditions: int8 (N, attributes) of 1 and -1, or None."""
        self.faces, self.hold_out = faces, hold_out
        self.conditions = np.zeros((len(faces), 0), np.int8) if conditions is None else conditions
        self.training, self.held_out = split(len(faces), hold_out, people)

    def __str__(self) -> str:
        """How many faces there are, and what is held out."""
        return f'{len(self.training)} to train on, {len(self.held_out)} held out: {HOLD_OUTS[self.hold_out]}'

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the array's shape and of about a thousand faces, which tells data sets apart."""
        # Hashing all of CelebA would take seconds at each start.
        some = self.faces[:: math.ceil(len(self.faces) / 1000)]
        return hashlib.blake2s(repr(self.faces.shape).encode() + some.tobytes(), digest_size=8).hexdigest()

    def steps_per_epoch(self, batch_size: int) -> int:
        """The number of full batches of training faces."""
        return len(self.training) // batch_size

    def get_indices(self, batch_size: int, seed: int, epoch: int, start: int = 0):
        """Yield the indices of the training faces in each batch of an epoch, (batch_size,), in a random order.

        start: the index of the first batch to yield, where a resumed run continues.
        """
        # The order depends on nothing else, so a resumed run gets the batches of an uninterrupted one.
        # The last faces in it, too few for a batch, are left out.
        order = np.random.default_rng((seed, epoch)).permutation(self.training)
        for step in range(start, self.steps_per_epoch(batch_size)):
            yield order[step * batch_size : (step + 1) * batch_size]

    def get_batches(self, batch_size: int, seed: int, epoch: int):
        """Yield the batches of an epoch, float32 (batch_size, height, width, channels) in -0.5..0.5."""
        for indices in self.get_indices(batch_size, seed, epoch):
            yield get_batch(self.faces, indices)


def to_uint8(images: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Map values from `value_range` (low, high) to 0..255, clipping those outside it."""
    low, high = value_range
    return np.rint((np.asarray(images, np.float32) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)


def to_image(pixels: np.ndarray) -> Image.Image:
    """A Pillow image from uint8 (height, width, 3), or (height, width, 1) for grey."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def images_square_grid(images: np.ndarray, value_range=(0, 255), columns: int | None = None) -> Image.Image:
    """Arrange images (N, height, width, channels) row by row, on black, in the smallest square grid that holds them.

    value_range: the values of black and white: (-0.5, 0.5) for batches, (-1, 1) for the generator's images.
    """
    # The number of columns gives a square unless it is chosen.
    images = to_uint8(images, value_range)
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    # Fill the last row with black images, and exchange the axes: (row, column, H, W, C) -> (row, H, column, W, C).
    black = np.zeros((-count % columns, height, width, channels), np.uint8)
    rows = np.concatenate([images, black]).reshape(-1, columns, height, width, channels)
    return to_image(rows.swapaxes(1, 2).reshape(-1, columns * width, channels))
