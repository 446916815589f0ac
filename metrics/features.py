"""The feature network: a small classifier of face attributes, whose features are used for FID-style metrics.

It was trained on CelebA's 40 attributes (`benchmarks/features.py`), such as smiles, hair, glasses and age. It is not
the Inception network of the FID, so its distances cannot be compared with published ones.
"""

from pathlib import Path

import numpy as np

from common.cli import progress
from dcgan import network
from graph.session import open_session, tf
from systems import Layer, System

WEIGHTS = Path(__file__).parent.parent / 'pretrained' / 'features.npz'
SIDE = 64  # side that images are resized to, pixels
SETTINGS = System(article='none', image_size=SIDE, generator=(), discriminator=(), weight_stddev=0.0)
LAYERS = (
    Layer('conv2d', 32, kernel=3, stride=2, batch_norm=True),  # (32, 32, 32)
    Layer('conv2d', 64, kernel=3, stride=2, batch_norm=True),  # (16, 16, 64)
    Layer('conv2d', 128, kernel=3, stride=2, batch_norm=True),  # (8, 8, 128)
    Layer('conv2d', 256, kernel=3, stride=2, batch_norm=True),  # (4, 4, 256)
    Layer('dense', (1, 1, 128), batch_norm=True),  # the features
)
ATTRIBUTES = (Layer('dense', (40,), activation=None),)  # the logits
BATCH = 256  # faces in a session run
NEIGHBOURS = 3  # nearest neighbours within the neighbourhood of a face, as published


def face_features(images, training: bool = False, statistics: list | None = None) -> tuple:
    """The features (N, 128) and attribute logits (N, 40) of images (N, H, W, 1 or 3) in 0..255; see `batch_norm`."""
    if images.shape[-1] == 1:
        images = tf.image.grayscale_to_rgb(images)
    images = tf.image.resize_bilinear(tf.cast(images, tf.float32) / 127.5 - 1, [SIDE, SIDE])
    with tf.variable_scope('features', reuse=tf.AUTO_REUSE):
        features = network(SETTINGS, LAYERS, images, training, statistics)
    with tf.variable_scope('attributes', reuse=tf.AUTO_REUSE):
        logits = network(SETTINGS, ATTRIBUTES, features, training)
    return features[:, 0, 0], logits


def extract(faces: np.ndarray, weights: Path = WEIGHTS) -> tuple[np.ndarray, np.ndarray]:
    """The features (N, 128) and attribute probabilities (N, 40) of faces, uint8 (N, H, W, 1 or 3)."""
    with tf.Graph().as_default(), open_session() as session, np.load(weights) as saved:
        images = tf.placeholder(tf.uint8, [None, *faces.shape[1:]])
        features, logits = face_features(images)
        fetches = features, tf.sigmoid(logits)
        # Initialise the variables with the saved weights.
        values = {variable.initial_value: saved[variable.op.name] for variable in tf.global_variables()}
        session.run(tf.global_variables_initializer(), values)
        parts = []
        with progress(desc='Comparing', total=len(faces), unit=' faces') as bar:
            for start in range(0, len(faces), BATCH):
                parts.append(session.run(fetches, {images: faces[start : start + BATCH]}))
                bar.update(len(parts[-1][0]))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of two sets of features, (N, d) and (M, d), as if both were normally distributed.

    Dowson and Landau (1982); Heusel et al. (2017, arXiv:1706.08500) use other features. It is biased upwards for small
    sets: compare only distances between equally many faces.
    """
    # |mean_a - mean_b|^2 + trace(A + B - 2 sqrt(A B)), where A and B are the covariances.
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # A B has the same eigenvalues as sqrt(A) B sqrt(A), which is symmetric.
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(0)).sum()
    difference = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * trace)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The Euclidean distances (N, M) between features (N, d) and (M, d)."""
    # |x - y|^2 = |x|^2 + |y|^2 - 2xy
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(squares.clip(0))


def coverage(faces: np.ndarray, others: np.ndarray) -> float:
    """The fraction of features `faces` (N, d) within the neighbourhood of one of `others` (M, d).

    Precision for generated faces among real ones, recall for real ones among generated ones (Kynkäänniemi et al., 2019,
    arXiv:1904.06991).
    """
    # A neighbourhood reaches to the NEIGHBOURS-th nearest of `others`. The nearest of all is the face itself.
    nearest = np.sort(distances(others, others), axis=1)
    radii = nearest[:, min(NEIGHBOURS, len(others) - 1)]
    return float((distances(faces, others) <= radii).any(axis=1).mean())
