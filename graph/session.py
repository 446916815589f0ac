"""TensorFlow and its sessions. All other modules import `tf` from here; it loads on first use."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from common.lazy import LazyModule, load_with_matplotlib

BFLOAT16_FLAGS = {'amx_bf16', 'avx512_bf16', 'bf16'}  # flags in /proc/cpuinfo of x86 and Arm processors


@contextlib.contextmanager
def quiet_stderr():
    """Hide the start-up messages of TensorFlow's C++ code, unless TF_CPP_MIN_LOG_LEVEL is set to show them.

    The first messages come before TensorFlow reads this variable, so stderr is redirected to /dev/null meanwhile.
    Errors raised in Python are not affected.
    """
    if os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3') != '3':
        yield
        return
    stderr = os.dup(2)
    with open(os.devnull, 'wb') as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def load_tensorflow(name: str):
    """Import TensorFlow without its start-up messages, and with oneDNN's kernels unless TF_ENABLE_ONEDNN_OPTS is 0."""
    # TensorFlow enables oneDNN only with AVX-512 VNNI or newer, although AVX2 gains as much.
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
    with quiet_stderr():
        module = load_with_matplotlib(name)  # Keras imports it
        # TensorFlow 2.18 also prints messages at the first run. Without a GPU, which the real session will claim.
        config = module.ConfigProto(device_count={'GPU': 0})
        with module.Graph().as_default(), module.Session(config=config) as session:
            session.run(module.constant(0))
    module.logging.set_verbosity(module.logging.ERROR)
    return module


tensorflow = LazyModule('tensorflow')
if TYPE_CHECKING:
    import tensorflow.compat.v1 as tf
else:
    tf = LazyModule('tensorflow.compat.v1', load_tensorflow)


def session_config():
    """The configuration of every session: GPU memory is claimed as needed."""
    config = tf.ConfigProto()
    config.gpu_options.allow_growth = True
    # TensorFlow 2.18 to 2.20 log an error when they try to fuse a bias with a leaky ReLU.
    config.graph_options.rewrite_options.remapping = config.graph_options.rewrite_options.OFF
    return config


def open_session(graph=None):
    """A session on the devices of this process."""
    return tf.Session(graph=graph, config=session_config())


def devices() -> str:
    """One line: the devices that TensorFlow sees, and which one is used for training."""
    physical = tf.config.list_physical_devices()
    names = ', '.join(device.name.removeprefix('/physical_device:') for device in physical)
    gpu = any(device.device_type == 'GPU' for device in physical)
    return f'Devices: {names}. ' + ('Training on the GPU.' if gpu else 'No GPU: training on the CPU.')


def gpu_memory() -> int:
    """The memory of the first GPU in bytes, 0 if there is no GPU."""
    if not tf.config.list_physical_devices('GPU'):
        return 0
    with open_session(tf.Graph()) as session:
        return max(device.memory_limit_bytes for device in session.list_devices() if device.device_type == 'GPU')


def enable_determinism() -> None:
    """Make every operation deterministic, at some cost on a GPU. Operations that cannot be raise an error."""
    tensorflow.config.experimental.enable_op_determinism()


def has_fast_bfloat16() -> bool:
    """Whether the device used for training has bfloat16 units; without them bfloat16 is slower than float32."""
    # Compute capability 8.0 is Ampere.
    if gpus := tf.config.list_physical_devices('GPU'):
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return all(each.get('compute_capability', (0, 0)) >= (8, 0) for each in details)
    try:
        return bool(BFLOAT16_FLAGS & set(Path('/proc/cpuinfo').read_text().split()))
    except OSError:  # not Linux
        return False
