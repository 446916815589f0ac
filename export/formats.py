"""A trained generator by itself, in formats that this project or other programs read."""

import contextlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.cli import UserError, new_folder
from common.lazy import LazyModule
from config.settings import PATHS
from graph.session import quiet_stderr, tensorflow, tf
from rundir import checkpoints
from rundir.run_json import read_run
from sampling.generator import Generator, restored_generator

LATENTS, FACES = 'latents', 'faces'  # the names of the input and of the output in other formats than ours


def export_generator(checkpoint: Path, out: Path, format: str = 'checkpoint') -> None:
    """Write only the generator as the folder `out`, which appears once complete. Raises UserError and OSError.

    format: one of FORMATS: 'checkpoint' is a run directory; the others are models that turn `latents`, float32
    (N, z_dim), into `faces`, uint8 (N, H, W, C), for any N.
    """
    with new_folder(out) as folder:
        try:
            FORMATS[format](checkpoint, folder)
        except (tf.errors.OpError, shutil.Error):  # their messages are long, and name temporary folders
            raise UserError(f'{out} cannot be written, the disk may be full') from None


def write_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Write a run directory."""
    run_dir, (_, prefix) = checkpoints.find(checkpoint)
    run = read_run(run_dir)
    for name in PATHS:  # whoever gets the generator need not know this machine's folders
        run['settings'][name] = Path(run['settings'][name]).name if run['settings'][name] else None
    (folder / 'checkpoints').mkdir(parents=True)
    (folder / 'run.json').write_text(json.dumps(run, indent=2) + '\n')
    with restored_generator(checkpoint) as generator:
        checkpoints.write(generator.session, tf.train.Saver(), folder / 'checkpoints' / prefix.name)


def byte_faces(generator: Generator):
    """A tensor of the generator's faces as `helper.to_uint8` gives them, uint8 (N, H, W, C)."""
    faces = tf.clip_by_value(tf.round((generator.images + 1) * (255 / 2)), 0, 255)  # TFLite has no saturate_cast
    return tf.cast(faces, tf.uint8)


@contextlib.contextmanager
def saved_model(checkpoint: Path) -> Iterator[str]:
    """Yield the path of a SavedModel, in a temporary folder: TensorFlow needs a path in UTF-8."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'model')
        with restored_generator(checkpoint) as generator:
            faces = byte_faces(generator)
            tf.saved_model.simple_save(generator.session, path, {LATENTS: generator.z}, {FACES: faces})
        yield path  # now that no graph is open: in one, the converter to TFLite would leave out the signature


def write_saved_model(checkpoint: Path, folder: Path) -> None:
    """Write a SavedModel, whose signature has the default name, `serving_default`."""
    with saved_model(checkpoint) as path:
        shutil.copytree(path, folder)


def write_tflite(checkpoint: Path, folder: Path) -> None:
    """Write generator.tflite, which uses no operations but TFLite's own."""
    with saved_model(checkpoint) as path, quiet_stderr():
        model = tensorflow.lite.TFLiteConverter.from_saved_model(path).convert()
    folder.mkdir()
    (folder / 'generator.tflite').write_bytes(model)


def load_converter(name: str):
    """Import tf2onnx, which is no requirement of the project. Raises UserError."""
    try:
        with quiet_stderr():
            return importlib.import_module(name)
    except Exception as error:  # it is missing, or its onnx needs a newer ml_dtypes than TensorFlow allows
        raise UserError(f'--format onnx: {error}; pip install "tf2onnx>=1.17" (see docs/formats.md)') from None


tf2onnx = LazyModule('tf2onnx.convert', load_converter)


def write_onnx(checkpoint: Path, folder: Path) -> None:
    """Write generator.onnx."""
    convert = tf2onnx.from_graph_def  # before any work: it may be missing
    with restored_generator(checkpoint) as generator:
        z, faces, session = generator.z, byte_faces(generator), generator.session
        graph_def = tf.graph_util.convert_variables_to_constants(session, session.graph_def, [faces.op.name])
    names = {z.name: LATENTS, faces.name: FACES}
    with quiet_stderr():
        model, _ = convert(graph_def, input_names=[z.name], output_names=[faces.name], tensors_to_rename=names)
    folder.mkdir()
    (folder / 'generator.onnx').write_bytes(model.SerializeToString())


FORMATS = {'checkpoint': write_checkpoint, 'saved_model': write_saved_model, 'tflite': write_tflite, 'onnx': write_onnx}
