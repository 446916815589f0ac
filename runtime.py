"""How does TensorFlow start, and what does it run on? Other modules take `tf` from here."""

import contextlib
import os


@contextlib.contextmanager
def calm_start():
    """Silence what TensorFlow's C++ code says while it loads, unless TF_CPP_MIN_LOG_LEVEL asks for it.

    The variable alone is not enough: the first messages come before TensorFlow reads it, so the
    descriptor itself points elsewhere meanwhile. Python's errors are not touched.
    """
    if os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3') != '3':
        yield
        return
    stderr = os.dup(2)
    with open(os.devnull, 'wb') as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


with calm_start():
    import tensorflow.compat.v1 as tf

    # TensorFlow 2.18 has something to say at the first run, too. Without a GPU: that is for the real session.
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})) as session:
        session.run(tf.constant(0))

tf.logging.set_verbosity(tf.logging.ERROR)


def session_config():
    """A ConfigProto of sessions that take GPU memory as they need it."""
    config = tf.ConfigProto()
    config.gpu_options.allow_growth = True
    # TensorFlow 2.18 to 2.20 log an error when they try to make one operation of a bias and a leaky ReLU.
    config.graph_options.rewrite_options.remapping = config.graph_options.rewrite_options.OFF
    return config


def open_session(graph=None, config=None, target=''):
    """A session on this process's devices, or with the `config` and on the server `target` of a worker."""
    return tf.Session(target, graph, config or session_config())


def devices() -> str:
    """A line that says which devices TensorFlow sees."""
    physical = tf.config.list_physical_devices()
    names = ', '.join(device.name.removeprefix('/physical_device:') for device in physical)
    gpu = any(device.device_type == 'GPU' for device in physical)
    return f'Devices: {names}. ' + ('Training on the GPU.' if gpu else 'No GPU: training on the CPU.')
