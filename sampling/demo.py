"""The demo data set: faces drawn by the pretrained generator, for a first training without a download."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.prepared import open_prepared, save_prepared
from rundir import checkpoints
from sampling.generator import PRETRAINED, draw_faces

DEMO_FACES = 8192


def load_demo(cache_dir: Path, size: int) -> np.ndarray:
    """The demo data set, uint8 (DEMO_FACES, size, size, 3), memory-mapped. None of its faces is a photograph.

    It is drawn the first time and kept in `cache_dir`, in a file named after the generator's weights. The faces are
    28x28, and resized for any other `size`. Raises OSError.
    """
    _, pretrained = checkpoints.find(PRETRAINED)
    weights = b''.join(path.read_bytes() for path in pretrained.files())
    digest = hashlib.blake2b(weights, digest_size=8).hexdigest()
    path = cache_dir / f'demo-{DEMO_FACES}-{size}-{digest}.npy'
    faces = open_prepared(path, size)
    if faces is None:
        chunks = draw_faces(PRETRAINED, DEMO_FACES, seed=0)
        faces = save_prepared(path, size, (resized(chunk, size) for chunk in chunks))
    return faces


def resized(faces: np.ndarray, size: int) -> np.ndarray:
    """`faces` (N, H, W, 3) resized to (N, size, size, 3)."""
    return np.array([Image.fromarray(face).resize((size, size), Image.Resampling.BICUBIC) for face in faces])
