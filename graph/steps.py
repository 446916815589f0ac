"""Training steps, many of them in one session call, and the data set on the device."""

from graph.session import tf

# XLA turns a loop over a single batch into other code, which rounds differently on some processors. So a compiled
# program has room for at least this many batches.
MIN_COMPILED = 2


def repeat(step, inputs: list, shapes: list, size, count) -> list:
    """Run `step` on the first `count` of `size` batches in turn. Returns its results, stacked: (size, ...), then zeros.

    step: takes a batch of each input, and returns a tensor for each of `shapes`, after all updates.
    inputs: tensors of `size` batches end to end. size: an int or, if nothing is compiled, a tensor such as `count`.
    """
    inputs = [tf.reshape(tensor, [size, -1, *tensor.shape[1:]]) for tensor in inputs]

    def body(number, *arrays):
        results = step(*(tensor[number] for tensor in inputs))
        with tf.control_dependencies(results):  # the next step begins when this one is done
            return number + 1, *(array.write(number, result) for array, result in zip(arrays, results, strict=True))

    arrays = [tf.TensorArray(tf.float32, size, element_shape=shape) for shape in shapes]
    _, *arrays = tf.while_loop(lambda number, *_: number < count, body, [0, *arrays], parallel_iterations=1)
    return [array.stack() for array in arrays]


class StoredFaces:
    """Faces, uint8 of `shape` (N, H, W, C), in a variable on the device, which no checkpoint holds."""

    def __init__(self, shape: tuple):
        self.value = tf.placeholder(tf.uint8, shape)
        self.variable = tf.Variable(self.value, trainable=False, collections=[])

    def load(self, faces, session) -> None:
        """Copy `faces` to the device."""
        session.run(self.variable.initializer, {self.value: faces})

    def get_batch(self, indices):
        """The faces at `indices`, float32 in -0.5..0.5, computed like `helper.get_batch`."""
        return tf.cast(tf.gather(self.variable, indices), tf.float32) * (1 / 255) - 0.5
