"""A static page that draws faces in the browser: the files of `page/`, and the generator in `weights.js`."""

import base64
import json
import shutil
from pathlib import Path

import numpy as np

from common.cli import UserError, new_folder
from sampling.generator import Generator, folded_layers, restored_generator

TEMPLATE = Path(__file__).parent.parent / 'page'


def to_float16(values: np.ndarray) -> str:
    """Encode values in half precision, little-endian, as base64. Raises UserError if one is not finite."""
    # Values that are too large become infinite.
    with np.errstate(over='ignore'):
        halves = values.astype('<f2')
    if not np.isfinite(halves).all():
        raise UserError('the page cannot have weights that are infinite, not a number, or above 65504')
    return base64.b64encode(halves.tobytes()).decode()


def generator_data(generator: Generator) -> dict:
    """The contents of `weights.js`: the shape of images and latents, and the layers, as JSON-serialisable values."""
    system = generator.system
    height, width, channels = system.image_shape
    # The names are those that page/generator.js reads.
    layers = [
        {
            'kind': layer.kind, 'output': layer.output, 'stride': layer.stride,
            'padding': layer.padding.lower(), 'activation': layer.activation,
            'kernelShape': kernel.shape, 'kernel': to_float16(kernel),
            'biasShape': bias.shape, 'bias': to_float16(bias),
        }
        for layer, (kernel, bias) in zip(system.generator, folded_layers(generator), strict=True)
    ]  # fmt: skip
    return {
        'height': height, 'width': width, 'channels': channels,
        'latent': system.latent, 'latentSize': system.latent_size,
        'attributes': system.attributes, 'combinations': system.combinations,
        'leakySlope': system.leaky_slope, 'layers': layers,
    }  # fmt: skip


def write_page(generator: Generator, folder: Path) -> None:
    """Write the page of a generator as a new folder. Raises UserError and OSError."""
    # Copy the static files, and add the generator.
    folder.mkdir()
    for path in TEMPLATE.iterdir():
        shutil.copyfile(path, folder / path.name)
    (folder / 'weights.js').write_text(f'const GENERATOR = {json.dumps(generator_data(generator))};\n')


def export_page(checkpoint: Path, out: Path) -> None:
    """Write the page as the folder `out`, which appears when it is complete. Raises UserError and OSError."""
    with new_folder(out) as folder, restored_generator(checkpoint) as generator:
        write_page(generator, folder)
