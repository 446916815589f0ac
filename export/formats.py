"""Export of a trained generator, as a checkpoint or for other programs."""

import contextlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.cli import UserError, new_folder
from config.settings import PATHS
from graph.session import quiet_stderr, tensorflow, tf
from rundir import checkpoints
from rundir.run_json import read_run
from sampling.generator import Generator, restored_generator

LATENTS, FACES = 'latents', 'faces'  # names of the input and the output in models for other programs


def export_generator(checkpoint: Path, out: Path, format: str = 'checkpoint') -> None:
    """Write the generator as the folder `out`, which appears when it is complete. Raises UserError and OSError.

    format: 'checkpoint' is a run directory; all others turn `latents`, float32 (N, z_dim), into `faces`, uint8.
    """
    with new_folder(out) as folder:
        try:
            FORMATS[format](checkpoint, folder)
        except (tf.errors.OpError, shutil.Error):  # with long messages that name temporary folders
            raise UserError(f'{out} cannot be written, the disk may be full') from None


def write_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Write a run directory with only the generator."""
    run = read_run(checkpoints.locate(checkpoint)[0])
    # Keep the names of files, but not the folders of this machine, which may be private.
    for name in PATHS:
        run['settings'][name] = Path(run['settings'][name]).name if run['settings'][name] else None
    (folder / 'checkpoints').mkdir(parents=True)
    (folder / 'run.json').write_text(json.dumps(run, indent=2) + '\n')
    with restored_generator(checkpoint) as generator:
        name = generator.checkpoint.prefix.name
        checkpoints.write(generator.session, tf.train.Saver(), folder / 'checkpoints' / name)


def byte_faces(generator: Generator):
    """The generator's faces as a tensor, uint8 (N, H, W, C), equal to `helper.to_uint8` of its images."""
    # TFLite has no saturate_cast.
    faces = tf.clip_by_value(tf.round((generator.images + 1) * (255 / 2)), 0, 255)
    return tf.cast(faces, tf.uint8)


@contextlib.contextmanager
def saved_model(checkpoint: Path) -> Iterator[str]:
    """Yield the path of a SavedModel in a temporary folder, because TensorFlow needs a path in UTF-8."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'model')
        with restored_generator(checkpoint) as generator:
            faces = byte_faces(generator)
            tf.saved_model.simple_save(generator.session, path, {LATENTS: generator.z}, {FACES: faces})
        # Yield outside of the graph: inside, the converter to TFLite would leave out the signature.
        yield path


def write_saved_model(checkpoint: Path, folder: Path) -> None:
    """Write a SavedModel with the signature `serving_default`."""
    with saved_model(checkpoint) as path:
        shutil.copytree(path, folder)


def write_tflite(checkpoint: Path, folder: Path) -> None:
    """Write generator.tflite, which uses only the built-in operations of TFLite."""
    with saved_model(checkpoint) as path, quiet_stderr():
        model = tensorflow.lite.TFLiteConverter.from_saved_model(path).convert()
    folder.mkdir()
    (folder / 'generator.tflite').write_bytes(model)


def load_converter():
    """Import tf2onnx, an optional dependency. Raises UserError."""
    try:
        with quiet_stderr():
            return importlib.import_module('tf2onnx.convert')
    except Exception as error:  # not installed, or its onnx needs a newer ml_dtypes than TensorFlow allows
        raise UserError(f'--format onnx: {error}; pip install "tf2onnx>=1.17" (see docs/formats.md)') from None


def write_onnx(checkpoint: Path, folder: Path) -> None:
    """Write generator.onnx."""
    # Fail before any work if the converter is missing.
    convert = load_converter().from_graph_def
    # Replace the variables by constants.
    with restored_generator(checkpoint) as generator:
        z, faces, session = generator.z, byte_faces(generator), generator.session
        graph_def = tf.graph_util.convert_variables_to_constants(session, session.graph_def, [faces.op.name])
    # Convert the graph, and name its input and output.
    names = {z.name: LATENTS, faces.name: FACES}
    with quiet_stderr():
        model, _ = convert(graph_def, input_names=[z.name], output_names=[faces.name], tensors_to_rename=names)
    folder.mkdir()
    (folder / 'generator.onnx').write_bytes(model.SerializeToString())


FORMATS = {'checkpoint': write_checkpoint, 'saved_model': write_saved_model, 'tflite': write_tflite, 'onnx': write_onnx}
