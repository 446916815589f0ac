"""The demo data set: faces drawn by a pretrained generator, for training without a download."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dataset.prepared import open_prepared, save_prepared, size_of
from rundir import checkpoints
from sampling.generator import PRETRAINED_BY_SIZE, draw_faces

DEMO_FACES = 8192


def demo_size(height: int, width: int) -> int:
    """The side, in pixels, of the pretrained faces that demo faces of this size are resized from."""
    return next((size for size in PRETRAINED_BY_SIZE if max(height, width) <= size), max(PRETRAINED_BY_SIZE))


def load_demo(cache_dir: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The demo data set, uint8 (DEMO_FACES, *shape), drawn once and cached in `cache_dir`. Raises OSError."""
    # Choose the smallest generator whose faces need not be enlarged. The cache is named after its weights.
    height, width, channels = shape
    generator = PRETRAINED_BY_SIZE[demo_size(height, width)]
    weights = b''.join(path.read_bytes() for path in checkpoints.locate(generator)[1][0].files())
    kind = size_of(shape) if channels == 3 else f'{size_of(shape)}-grey'
    path = cache_dir / f'demo-{DEMO_FACES}-{kind}-{hashlib.blake2b(weights, digest_size=8).hexdigest()}.npy'
    if (prepared := open_prepared(path, shape)) is not None:
        return prepared

    # Draw the faces, and crop and resize them.
    faces = itertools.chain.from_iterable(draw_faces(generator, DEMO_FACES, seed=0))
    resized = (ImageOps.fit(Image.fromarray(face), (width, height), Image.Resampling.BICUBIC) for face in faces)
    blocks = (np.asarray(face if channels == 3 else face.convert('L')).reshape(1, *shape) for face in resized)
    return save_prepared(path, shape, blocks)
