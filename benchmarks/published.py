"""The published training on today's TensorFlow: what speed.py compares with. It is not run by itself.

D. Monn, Deep convolutional generative adversarial networks with TensorFlow, O'Reilly. JPEGs are decoded for every
batch, the discriminator and the generator are updated in a session run each, and the discriminator cuts the features of
16 images into 49 rows. `tf.layers` is written out.
"""

import io
import zipfile

import numpy as np
from PIL import Image

from graph.session import tf

ALPHA = 0.2


def variable(name, shape, initializer=None):
    return tf.get_variable(name, shape, initializer=initializer or tf.glorot_uniform_initializer())


def with_bias(x):
    return tf.nn.bias_add(x, variable('bias', [x.shape[-1]], tf.zeros_initializer()))


def conv2d(x, filters, strides, scope):
    with tf.variable_scope(scope):
        return with_bias(tf.nn.conv2d(x, variable('kernel', [5, 5, x.shape[-1], filters]), strides, 'SAME'))


def conv2d_transpose(x, filters, side, padding, scope):
    with tf.variable_scope(scope):
        kernel = variable('kernel', [5, 5, filters, x.shape[-1]])
        return with_bias(tf.nn.conv2d_transpose(x, kernel, [tf.shape(x)[0], side, side, filters], 2, padding))


def dense(x, units, scope):
    with tf.variable_scope(scope):
        return with_bias(tf.matmul(x, variable('kernel', [x.shape[-1], units])))


def batch_normalization(x, scope):
    with tf.variable_scope(scope):
        scale = variable('gamma', [x.shape[-1]], tf.ones_initializer())
        offset = variable('beta', [x.shape[-1]], tf.zeros_initializer())
        y, _, _ = tf.nn.fused_batch_norm(x, scale, offset, epsilon=1e-3)
        return y


def leaky_relu(x):
    return tf.maximum(ALPHA * x, x)


def generator(z):
    with tf.variable_scope('generator'):
        x = tf.reshape(dense(z, 2 * 2 * 512, 'dense'), [-1, 2, 2, 512])
        x = leaky_relu(batch_normalization(x, 'norm1'))
        x = leaky_relu(batch_normalization(conv2d_transpose(x, 256, 7, 'VALID', 'conv1'), 'norm2'))
        x = leaky_relu(batch_normalization(conv2d_transpose(x, 128, 14, 'SAME', 'conv2'), 'norm3'))
        return tf.tanh(conv2d_transpose(x, 3, 28, 'SAME', 'conv3'))


def discriminator(images, reuse=False):
    with tf.variable_scope('discriminator', reuse=reuse):
        x = leaky_relu(conv2d(images, 64, 2, 'conv1'))
        x = leaky_relu(batch_normalization(conv2d(x, 128, 2, 'conv2'), 'norm2'))
        x = leaky_relu(batch_normalization(conv2d(x, 256, 1, 'conv3'), 'norm3'))
        return dense(tf.reshape(x, [-1, 4 * 4 * 256]), 1, 'dense')


def cross_entropy(logits, label):
    labels = tf.ones_like(logits) * label
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))


def get_image(file):
    with Image.open(file) as image:
        left, top = (image.width - 108) // 2, (image.height - 108) // 2
        face = image.crop((left, top, left + 108, top + 108)).resize((28, 28), Image.Resampling.BILINEAR)
        return np.array(face.convert('RGB'))


def get_batches(archive: zipfile.ZipFile, batch_size):
    """Yield batches, float32 in -0.5..0.5, decoded on demand, without end."""
    names = archive.namelist()
    while True:
        for first in range(0, len(names) - batch_size + 1, batch_size):
            batch = [get_image(io.BytesIO(archive.read(name))) for name in names[first : first + batch_size]]
            yield np.array(batch).astype(np.float32) / 255 - 0.5


def train(batches, batch_size, steps):
    """Train for this many steps, and yield after each."""
    rng = np.random.default_rng(0)
    with tf.Graph().as_default(), tf.Session() as session:
        input_real = tf.placeholder(tf.float32, [None, 28, 28, 3])
        input_z = tf.placeholder(tf.float32, [None, 100])
        fake = generator(input_z)
        real_logits, fake_logits = discriminator(input_real * 2), discriminator(fake, reuse=True)
        d_loss = cross_entropy(real_logits, 0.9) + cross_entropy(fake_logits, 0.0)
        g_loss = cross_entropy(fake_logits, 0.9)
        d_train_opt, g_train_opt = (
            tf.train.AdamOptimizer(2e-4, beta1=0.5).minimize(loss, var_list=tf.trainable_variables(scope))
            for loss, scope in ((d_loss, 'discriminator'), (g_loss, 'generator'))
        )
        session.run(tf.global_variables_initializer())
        for _ in range(steps):
            feed = {input_real: next(batches), input_z: rng.uniform(-1, 1, (batch_size, 100))}
            session.run(d_train_opt, feed)
            session.run(g_train_opt, feed)
            yield
