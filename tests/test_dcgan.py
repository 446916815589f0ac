import numpy as np
import pytest
from conftest import chosen
from tensorflow.python.framework import kernels as kernels_of

import dcgan
from runtime import tf
from systems import SYSTEMS, UPDATE_ORDERS, Layer

OREILLY = SYSTEMS['oreilly']
# The same kinds of layers, small enough to be quick.
SMALL = OREILLY._replace(
    latent_size=6,
    generator=(
        Layer('dense', (2, 2, 8), batch_norm=True),
        Layer('conv2d_transpose', 6, stride=2, padding='VALID', batch_norm=True),
        Layer('conv2d_transpose', 4, stride=2, batch_norm=True),
        Layer('conv2d_transpose', 3, stride=2, activation='tanh'),
    ),
    discriminator=(
        Layer('conv2d', 4, stride=2),
        Layer('conv2d', 6, stride=2, batch_norm=True),
        Layer('dense', (1,), activation=None),
    ),
    weight_stddev=0.2,
)
RNG = np.random.default_rng(0)
LEARNING_RATE = 0.01


@pytest.fixture(autouse=True)
def graph():
    with tf.Graph().as_default():
        tf.set_random_seed(0)
        yield


def evaluate(*tensors, feed=None):
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        return session.run(tensors, feed)


def images(count):
    return RNG.integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


# --- layers


def test_dense_is_a_matrix_product():
    x = normal(5, 2, 3)
    y, kernel = evaluate(dcgan.dense(tf.constant(x), (2, 2, 4), 1.0), *tf.global_variables())
    np.testing.assert_allclose(y, (x.reshape(5, 6) @ kernel).reshape(5, 2, 2, 4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('padding, shape', [('SAME', (2, 4, 4, 4)), ('VALID', (2, 2, 2, 4))])
def test_convolution_shapes(padding, shape):
    (y,) = evaluate(dcgan.conv2d(tf.constant(normal(2, 7, 7, 3)), 4, 5, 2, padding, 1.0))
    assert y.shape == shape


@pytest.mark.parametrize('side, padding, side_out', [(2, 'VALID', 7), (4, 'SAME', 8), (7, 'SAME', 14)])
def test_transposed_convolution_scatters_the_kernel_at_every_stride(side, padding, side_out):
    x = normal(2, side, side, 3)
    y, kernel = evaluate(dcgan.conv2d_transpose(tf.constant(x), 4, 5, 2, padding, 1.0), *tf.global_variables())
    assert kernel.shape == (5, 5, 4, 3) and y.shape == (2, side_out, side_out, 4)
    whole = np.zeros((2, 2 * side + 3, 2 * side + 3, 4))
    for i in range(side):
        for j in range(side):
            whole[:, 2 * i : 2 * i + 5, 2 * j : 2 * j + 5] += np.einsum('nc,hwkc->nhwk', x[:, i, j], kernel)
    cut = (2 * side + 3 - side_out) // 2  # 'SAME' cuts 3 rows off: 1 before, 2 behind
    np.testing.assert_allclose(y, whole[:, cut : cut + side_out, cut : cut + side_out], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'side, kernel, stride, padding',
    [
        (7, 5, 1, 'SAME'),
        (14, 5, 2, 'SAME'),
        (8, 4, 2, 'SAME'),
        (8, 3, 1, 'VALID'),
        (8, 4, 2, 'VALID'),
        (7, 5, 2, 'VALID'),
    ],
)
def test_gradient_of_kernels_is_that_of_tensorflow(monkeypatch, side, kernel, stride, padding):
    monkeypatch.setattr(dcgan, 'TAP_CHANNELS', 1)
    large, kernels = tf.constant(normal(3, side, side, 4)), tf.constant(normal(kernel, kernel, 4, 6))
    result = tf.nn.conv2d(large, kernels, stride, padding)
    small = tf.constant(normal(3, *result.shape[1:]))
    (expected,) = tf.gradients(result, kernels, small)
    ours, expected = evaluate(dcgan.kernel_gradient(large, small, kernels.shape, stride, padding), expected)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('layer', ['convolution', 'transposed_convolution', 'small transposed_convolution'])
def test_gradients_of_convolutions_are_those_of_tensorflow(monkeypatch, layer):
    monkeypatch.setattr(dcgan, 'TAP_CHANNELS', 1)
    side = 4 if 'small' in layer else 8
    x, kernels = tf.constant(normal(3, side, side, 4)), tf.constant(normal(5, 5, 6, 4))
    if layer == 'convolution':
        kernels = tf.transpose(kernels, [0, 1, 3, 2])
        ours, plain = dcgan.convolution(x, kernels, 2, 'SAME'), tf.nn.conv2d(x, kernels, 2, 'SAME')
    else:
        ours = dcgan.transposed_convolution(x, kernels, 2 * side, 2, 'SAME')
        plain = tf.nn.conv2d_transpose(x, kernels, [3, 2 * side, 2 * side, 6], 2, 'SAME')
    gradients = [[y, *tf.gradients(tf.sin(y), [x, kernels])] for y in (ours, plain)]
    for ours, expected in zip(*evaluate(*gradients), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_in_training_uses_the_batch_and_updates_the_averages():
    x = normal(4, 3, 3, 2) * 3 + 5
    y = dcgan.batch_norm(tf.constant(x), training=True)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        result, *_ = session.run([y, *tf.get_collection(tf.GraphKeys.UPDATE_OPS)])
        gamma, beta, moving_mean, moving_variance = session.run(tf.global_variables())
    mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    np.testing.assert_allclose(result, (x - mean) / np.sqrt(variance + 1e-3), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moving_mean, 0.01 * mean, rtol=1e-4)
    np.testing.assert_allclose(moving_variance, 0.99 + 0.01 * variance * 36 / 35, rtol=1e-4)  # unbiased
    assert (gamma == 1).all() and (beta == 0).all()


def test_batch_norm_in_sampling_uses_the_averages():
    x = normal(4, 3, 3, 2)
    y = dcgan.batch_norm(tf.constant(x), training=False)
    values = {'gamma': (2, 3), 'beta': (4, 5), 'moving_mean': (6, 7), 'moving_variance': (8, 9)}
    with tf.Session() as session:
        for variable in tf.global_variables():
            variable.load(values[variable.op.name.split('/')[-1]], session)
        result = session.run(y)
    expected = (x - (6, 7)) / np.sqrt(np.array((8, 9)) + 1e-3) * (2, 3) + (4, 5)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert tf.get_collection(tf.GraphKeys.UPDATE_OPS) == []


def at_step(session, step, number, tensors):
    """What `tensors` are when so many steps are done."""
    step.load(number, session)
    return session.run(tensors)


def dropped(seed=0, rate=0.25, steps=(0, 0, 1)):
    """What two dropout operations make of ones, (steps, 2, 1000, 20), when they are run at these steps."""
    with tf.Graph().as_default():
        tf.set_random_seed(seed)
        step = tf.train.get_or_create_global_step()
        outputs = [dcgan.dropout(tf.ones([1000, 20]), rate) for _ in range(2)]
        with tf.Session() as session:
            return np.array([at_step(session, step, number, outputs) for number in steps])


def test_dropout_zeros_its_share_and_keeps_the_mean():
    y = dropped(rate=0.25)
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose((y == 0).mean(axis=(2, 3)), 0.25, atol=0.0125)  # 4 standard deviations of 20,000
    np.testing.assert_allclose(y.mean(axis=(2, 3)), 1, atol=0.0167)
    assert ((y == 0).mean(axis=2) < 0.4).all()  # in every column, by units and not by images


def test_dropout_is_decided_by_the_seed_the_step_and_the_operation():
    (now, again, later), same, other = dropped(), dropped(steps=[0])[0], dropped(seed=1, steps=[0])[0]
    np.testing.assert_array_equal(now, again)
    np.testing.assert_array_equal(now, same)
    for different in (later, other, now[::-1]):
        # Of independent draws 2 * 1/4 * 3/4 differ.
        np.testing.assert_allclose((now != different).mean(axis=(1, 2)), 0.375, atol=0.02)


def test_dropout_is_of_training_alone_and_of_the_layers_that_have_it():
    dropping = SMALL._replace(dropout=0.5, generator=(SMALL.generator[0]._replace(dropout=True), *SMALL.generator[1:]))
    z = tf.constant(normal(8, 6))
    drawn = [
        dcgan.generator(system, z, training, reuse=tf.AUTO_REUSE)
        for training in (False, True)
        for system in (dropping, dropping._replace(dropout=0.0), SMALL._replace(dropout=0.5))
    ]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        sampling, training = np.split(np.array(session.run(drawn)), 2)
    np.testing.assert_array_equal(sampling[0], sampling[1])
    np.testing.assert_array_equal(training[1], training[2])
    assert np.abs(training[0] - training[1]).max() > 0.01


# Of Glorot and Bengio: U(-r, r) with r = sqrt(6 / (fan in + fan out)), a fan being channels times kernel positions.
@pytest.mark.parametrize(
    'layer, side, fans',
    [
        (Layer('dense', (2, 3, 40)), 4, 4 * 4 * 5 + 2 * 3 * 40),
        (Layer('conv2d', 60, kernel=3), 4, 3 * 3 * 5 + 3 * 3 * 60),
        (Layer('conv2d_transpose', 60, kernel=4, stride=2), 4, 4 * 4 * 5 + 4 * 4 * 60),
    ],
    ids=lambda value: getattr(value, 'kind', None),
)
@pytest.mark.parametrize('stddev', [0, 0.02])
def test_initial_weights(layer, side, fans, stddev):
    system = SMALL._replace(weight_stddev=stddev)
    dcgan.network(system, (layer,), tf.zeros([1, side, side, 5]), training=True)
    (kernel,) = evaluate(*tf.global_variables('layer1/.*kernel'))
    if stddev:
        np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 0.02], atol=0.0015)
        assert np.abs(kernel).max() > 2.5 * 0.02
    else:
        limit = np.sqrt(6 / fans)
        assert 0.99 * limit < np.abs(kernel).max() <= limit
        np.testing.assert_allclose([kernel.mean() / limit, kernel.std() / limit], [0, 1 / np.sqrt(3)], atol=0.05)


# --- networks


def test_discriminator_gives_each_image_one_logit_of_its_own():
    images = normal(4, 28, 28, 3)
    placeholder = tf.placeholder(tf.float32, [None, 28, 28, 3])
    logits = dcgan.discriminator(SMALL._replace(discriminator=SMALL.discriminator[::2]), placeholder)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        together = session.run(logits, {placeholder: images})
        alone = [session.run(logits, {placeholder: images[n : n + 1]})[0] for n in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_generated_images_fill_the_range_of_tanh():
    (images,) = evaluate(dcgan.generator(SMALL._replace(weight_stddev=5.0), tf.constant(normal(8, 6))))
    assert -1 <= images.min() < -0.99 and 0.99 < images.max() <= 1


# --- losses and steps


@pytest.mark.parametrize(
    'labels',
    [(0.9, 0.0, 0.9), (1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.2, 0.7, 0.1)],
    ids=lambda labels: '-'.join(map(str, labels)),
)
def test_losses_are_cross_entropies_of_the_labels(labels):
    real_label, fake_label, wanted_label = labels
    system = SMALL._replace(real_label=real_label, fake_label=fake_label, wanted_label=wanted_label)
    real, z, _ = dcgan.model_inputs(28, 28, 3, SMALL.latent_size)
    losses = dcgan.model_loss(system, real, z)
    in_range = tf.cast(real, tf.float32) / 127.5 - 1
    logits = dcgan.discriminator(SMALL, in_range, reuse=True), dcgan.discriminator(SMALL, losses.fake, reuse=True)
    feed = {real: images(8), z: normal(8, 6)}
    (d_loss, g_loss, d_real, d_fake, _), (real_logits, fake_logits) = evaluate(losses, logits, feed=feed)
    of_real, of_fake = (1 / (1 + np.exp(-logits.astype(np.float64))) for logits in (real_logits, fake_logits))

    def cross_entropy(p, label):
        return -np.mean(label * np.log(p) + (1 - label) * np.log(1 - p))

    np.testing.assert_allclose(d_loss, cross_entropy(of_real, real_label) + cross_entropy(of_fake, fake_label), 1e-5)
    np.testing.assert_allclose(g_loss, cross_entropy(of_fake, wanted_label), rtol=1e-5)
    if real_label < fake_label:  # the logits are those of being generated, and what is shown is not
        of_real, of_fake = 1 - of_real, 1 - of_fake
    assert d_real.shape == d_fake.shape == (8, 1)
    np.testing.assert_allclose(d_real, of_real, rtol=1e-4)
    np.testing.assert_allclose(d_fake, of_fake, rtol=1e-4)


def test_the_probability_of_being_real_is_that_of_the_real_label_also_where_it_is_0():
    system = SMALL._replace(real_label=0.0, fake_label=1.0, wanted_label=0.0)
    real, z, learning_rate = dcgan.model_inputs(28, 28, 3, SMALL.latent_size)
    losses = dcgan.model_loss(system, real, z)
    learn = dcgan.minimize(system, losses.d_loss, learning_rate, tf.trainable_variables('discriminator/'))
    feed = {real: images(8), z: normal(8, 6), learning_rate: LEARNING_RATE}
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for _ in range(50):
            session.run(learn, feed)
        d_real, d_fake = session.run([losses.d_real, losses.d_fake], feed)
    assert d_real.min() > 0.8 and d_fake.max() < 0.2


@pytest.mark.parametrize(
    'label, noise, other_end',
    [(0.0, 0.05, 0.05), (1.0, 0.05, 0.95), (0.9, 0.1, 0.82), (0.2, 0.5, 0.5), (0.9, 0.0, 0.9)],
)
def test_noise_moves_labels_towards_the_other_by_at_most_its_amount(label, noise, other_end):
    logit, steps = 3.0, 400
    step = tf.train.get_or_create_global_step()
    one = dcgan.cross_entropy(tf.constant([[logit]]), label, noise)
    many = dcgan.cross_entropy(tf.fill([10_000, 1], logit), label, noise)
    another = dcgan.cross_entropy(tf.fill([10_000, 1], logit), label, noise)
    with tf.Session() as session:
        losses = np.array([at_step(session, step, number, one) for number in range(steps)], np.float64)
        of_many, again, of_another = (at_step(session, step, 7, loss) for loss in (many, many, another))
    labels = (np.log1p(np.exp(logit)) - losses) / logit  # the loss is log(1 + e^logit) - label * logit
    low, high = sorted((label, other_end))
    assert low - 1e-6 <= labels.min() <= labels.max() <= high + 1e-6
    np.testing.assert_allclose([labels.min(), labels.max()], [low, high], atol=0.02 * (high - low) + 1e-6)
    mean = (label + other_end) / 2
    np.testing.assert_allclose(labels.mean(), mean, atol=4 * (high - low) / np.sqrt(12 * steps) + 1e-6)
    np.testing.assert_allclose(of_many, np.log1p(np.exp(logit)) - mean * logit, atol=0.04 * (high - low) + 1e-6)
    assert of_many == again and (of_many != of_another) == bool(noise)


def test_noise_is_of_the_labels_of_the_discriminator_alone():
    real, z, _ = dcgan.model_inputs(28, 28, 3, SMALL.latent_size)
    exact = dcgan.model_loss(SMALL, real, z)
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        noisy = dcgan.model_loss(SMALL._replace(label_noise=0.5), real, z)
    exact, noisy = evaluate(exact, noisy, feed={real: images(8), z: normal(8, 6)})
    assert noisy.g_loss == exact.g_loss and noisy.d_loss != exact.d_loss
    np.testing.assert_array_equal(noisy.d_real, exact.d_real)


def test_the_discriminators_learning_rate_is_the_generators_times_the_ratio():
    system = SMALL._replace(learning_rate_ratio=4.0, optimizer='adam')
    real, z, learning_rate = dcgan.model_inputs(28, 28, 3, SMALL.latent_size)
    train_opt = dcgan.model_opt(system, dcgan.model_loss(system, real, z), learning_rate)
    kernels = [tf.trainable_variables(f'{name}/')[0] for name in ('discriminator', 'generator')]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        before = session.run(kernels)
        session.run(train_opt, {real: images(8), z: normal(8, 6), learning_rate: 1e-3})
        after = session.run(kernels)
    # The first step of Adam is as long as the learning rate, whatever the gradient.
    moved = [np.abs(new - old).max() for new, old in zip(after, before, strict=True)]
    np.testing.assert_allclose(moved, [4e-3, 1e-3], rtol=1e-2)


def steps_of_rmsprop(w, gradients, rates):
    """As Keras has it, but that the mean square starts at 1."""
    mean_square = 1.0
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient = gradient(w)
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        w = w - rate * gradient / np.sqrt(mean_square + 1e-7)
    return w


def steps_of_adam(w, gradients, rates, beta1=0.5, beta2=0.999):
    """Kingma and Ba (2015), in the form before their section 2.1."""
    m = v = 0.0
    for number, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        gradient = gradient(w)
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        w = w - rate * np.sqrt(1 - beta2**number) / (1 - beta1**number) * m / (np.sqrt(v) + 1e-8)
    return w


@pytest.mark.parametrize('clip', [0, 0.5])
@pytest.mark.parametrize('optimizer, steps_of', [('adam', steps_of_adam), ('rmsprop', steps_of_rmsprop)])
def test_optimisers_clip_gradients_and_let_the_rate_decay(optimizer, steps_of, clip):
    count, rate, decay = 6, 0.1, 0.25
    system = SMALL._replace(optimizer=optimizer, clip_value=clip, learning_rate_decay=decay)
    slopes, start = np.array([0.01, 0.3, 2, -40]), np.array([1.0, -2, 0.7, 1.5])
    w = tf.get_variable('w', initializer=start.astype(np.float32))
    loss = tf.reduce_sum(tf.constant(slopes, tf.float32) * w**2 / 2)
    learning_rate = tf.placeholder(tf.float32, [])
    learn = dcgan.minimize(system, loss, learning_rate, [w])
    step = tf.train.get_or_create_global_step()
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for _ in range(count):
            session.run(learn, {learning_rate: rate})
            session.run(step.assign_add(1))
        result = session.run(w)

    def gradient(w):
        return np.clip(slopes * w, -clip, clip) if clip else slopes * w

    rates = [rate / (1 + number * decay) for number in range(count)]
    expected = steps_of(start, [gradient] * count, rates)
    np.testing.assert_allclose(result, expected, rtol=1e-4)
    unclipped = steps_of(start, [lambda w: slopes * w] * count, rates)
    assert np.abs(expected - unclipped).max() > 1e-3 or not clip  # or the test could not fail
    assert np.abs(expected - steps_of(start, [gradient] * count, [rate] * count)).max() > 1e-3


def build(update_order, ema=None):
    system = SMALL._replace(update_order=update_order)
    real, z, learning_rate = dcgan.model_inputs(28, 28, 3, SMALL.latent_size)
    losses = dcgan.model_loss(system, real, z)
    train_opt = dcgan.model_opt(system, losses, learning_rate, ema)
    feed = {real: images(8), z: normal(8, 6), learning_rate: LEARNING_RATE}
    return losses, train_opt, feed, learning_rate


def weights(scope):
    return {variable.op.name: variable for variable in tf.trainable_variables(scope)}


@pytest.mark.parametrize('update_order', UPDATE_ORDERS)
def test_generator_is_updated_against_the_discriminator_that_the_order_names(update_order):
    losses, train_opt, feed, _ = build(update_order)
    g, d = weights('generator/'), weights('discriminator/')
    gradients = tf.gradients(losses.g_loss, list(g.values()))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        g_before, d_before = session.run([g, d])
        session.run(train_opt, feed)
        g_after, d_after = session.run([g, d])
        assert all((d_after[name] != d_before[name]).any() for name in d)
        for name, value in g_before.items():
            g[name].load(value, session)
        for name, value in (d_after if update_order == 'alternating' else d_before).items():
            d[name].load(value, session)
        gradients = session.run(gradients, feed)
    for name, gradient in zip(g, gradients, strict=True):
        moved = (g_after[name] - g_before[name])[np.abs(gradient) > 1e-4]
        expected = -LEARNING_RATE * np.sign(gradient[np.abs(gradient) > 1e-4])  # Adam's first step
        np.testing.assert_allclose(moved, expected, rtol=1e-2, err_msg=name)


def step_of_oreilly(system, batch=4):
    """What one step makes of the same weights and the same batch: all variables by name, and the losses."""
    with tf.Graph().as_default():
        real, z, learning_rate = dcgan.model_inputs(28, 28, 3, system.latent_size)
        losses = dcgan.model_loss(system, real, z)
        train_opt = dcgan.model_opt(system, losses, learning_rate)
        rng = np.random.default_rng(0)
        feed = {
            real: rng.integers(0, 256, (batch, 28, 28, 3), dtype=np.uint8),
            z: rng.uniform(-1, 1, (batch, system.latent_size)),
            learning_rate: 2e-4,
        }
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            for variable in tf.trainable_variables():
                start = 1 if 'gamma' in variable.op.name else 0
                variable.load(start + 0.02 * rng.standard_normal(variable.shape), session)
            _, *outcome = session.run([train_opt, *losses[:4]], feed)
            variables = session.run({variable.op.name: variable for variable in tf.global_variables()})
            return variables, [np.mean(value) for value in outcome]


def test_a_step_on_the_fast_path_is_that_on_the_plain_path(monkeypatch):
    fast, fast_losses = step_of_oreilly(OREILLY)
    monkeypatch.setattr(dcgan, 'convolution', tf.nn.conv2d)
    monkeypatch.setattr(
        dcgan,
        'transposed_convolution',
        lambda x, kernels, side, stride, padding: tf.nn.conv2d_transpose(
            x, kernels, [tf.shape(x)[0], side, side, kernels.shape[2]], stride, padding
        ),
    )
    plain, plain_losses = step_of_oreilly(OREILLY)
    np.testing.assert_allclose(fast_losses, plain_losses, rtol=1e-5)
    for name, value in plain.items():
        if '/Adam' in name or 'moving' in name:  # the gradients, their squares, and the statistics
            np.testing.assert_allclose(fast[name], value, atol=1e-4 * np.abs(value).max(), err_msg=name)
        else:  # Adam's first step hangs on the sign alone, also of gradients that are all rounding
            assert np.mean(np.abs(fast[name] - value) > 1e-6) < 1e-3, name


def test_bfloat16_layers_keep_float32_weights_statistics_and_losses():
    exact, exact_losses = step_of_oreilly(OREILLY, batch=8)
    rounded, losses = step_of_oreilly(OREILLY._replace(precision='bf16'), batch=8)
    assert all(value.dtype == np.float32 for name, value in rounded.items() if name != 'global_step')
    np.testing.assert_allclose(losses, exact_losses, rtol=0.02)
    for name, value in exact.items():
        if name.endswith('kernel/Adam'):  # the gradient's direction
            cosine = np.sum(rounded[name] * value) / np.linalg.norm(rounded[name]) / np.linalg.norm(value)
            assert cosine > 0.98, (name, cosine)
            assert (rounded[name] != value).any()


@pytest.mark.parametrize(
    'flags',
    [
        '',
        '--precision bf16',
        '--system sharma',
        '--system kdnuggets',
        '--flip 0.5 --augment color-translation-cutout --instance-noise 0.1',
    ],
)
def test_no_operation_of_a_step_needs_the_cpu(flags):
    def kernel_for_gpu(operation):
        kernels = kernels_of.get_registered_kernels_for_op(operation.type).kernel
        return any(
            kernel.device_type in ('GPU', 'DEFAULT')
            and all(
                operation.get_attr(limit.name).as_datatype_enum in limit.allowed_values.list.type
                for limit in kernel.constraint
            )
            for kernel in kernels
        )

    if not any(kernel.device_type == 'GPU' for kernel in kernels_of.get_registered_kernels_for_op('Conv2D').kernel):
        pytest.skip('this TensorFlow was built without GPU kernels')
    ema = tf.train.ExponentialMovingAverage(0.9, tf.train.get_or_create_global_step())
    system = chosen(f'{flags} --width 0.03125')[1]
    real, z, learning_rate = dcgan.model_inputs(system.image_size, system.image_size, 3, system.latent_size)
    losses = dcgan.model_loss(system, real, z)
    train_opt = dcgan.model_opt(system, losses, learning_rate, ema)
    seen, todo = set(), [train_opt, *(loss.op for loss in losses)]
    while todo:
        operation = todo.pop()
        if operation not in seen:
            seen.add(operation)
            todo += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    assert len(seen) > 300
    types = {operation.type for operation in seen}
    assert ('StatelessRandomUniformV2' in types) == bool(system.dropout or system.label_noise or system.flip)
    assert ('ClipByValue' in types or {'Minimum', 'Maximum'} <= types) == bool(system.clip_value)
    assert {operation.type for operation in seen if not kernel_for_gpu(operation)} == set()


def test_xla_compiles_the_step_to_the_same_outcome():
    losses, train_opt, feed, _ = build('alternating')
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        weights = session.run(tf.global_variables())
        session.run(train_opt, feed)
        plain = session.run(tf.global_variables())
    with tf.Graph().as_default(), tf.xla.experimental.jit_scope():
        _, train_opt, compiled_feed, _ = build('alternating')
        feed = dict(zip(compiled_feed, feed.values(), strict=True))
        with tf.Session() as session:
            for variable, value in zip(tf.global_variables(), weights, strict=True):
                variable.load(value, session)
            options, metadata = tf.RunOptions(output_partition_graphs=True), tf.RunMetadata()
            session.run(train_opt, feed, options, metadata)
            compiled = session.run(tf.global_variables())
    assert any(node.op == '_XlaRun' for graph in metadata.partition_graphs for node in graph.node)
    for variable, value, expected in zip(tf.global_variables(), compiled, plain, strict=True):
        wrong = np.abs(value - expected) > 1e-3 * np.abs(expected).max() + 1e-6
        assert wrong.mean() < 0.01, variable.op.name


def test_a_step_of_learning_rate_0_moves_no_weight():
    _, train_opt, feed, learning_rate = build('alternating')
    trained = tf.trainable_variables()
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        before = session.run(trained)
        session.run(train_opt, feed | {learning_rate: 0.0})
        for old, new in zip(before, session.run(trained), strict=True):
            np.testing.assert_array_equal(old, new)


def test_a_step_updates_the_moving_averages_from_its_generated_and_its_real_images():
    _, train_opt, feed, _ = build('alternating')
    graph = tf.get_default_graph()
    inputs = [
        graph.get_operation_by_name(f'{name}/layer2/batch_norm/FusedBatchNormV3').inputs[0]
        for name in ('generator', 'discriminator')
    ]
    averages = [tf.global_variables(f'{name}/layer2/batch_norm/moving_mean') for name in ('generator', 'discriminator')]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        inputs = session.run(inputs, feed)
        session.run(train_opt, feed)
        for x, (average,) in zip(inputs, session.run(averages), strict=True):
            np.testing.assert_allclose(average, 0.01 * x.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-6)


def test_samples_use_the_averaged_weights():
    decay, steps = 0.5, 4
    step = tf.train.get_or_create_global_step()
    ema = tf.train.ExponentialMovingAverage(decay, step)
    _, train_opt, feed, _ = build('alternating', ema)
    z = tf.constant(normal(5, 6))
    samples = dcgan.generator(SMALL, z, training=False, reuse=True, ema=ema)
    plain = dcgan.generator(SMALL, z, training=False, reuse=True)
    variables = [v for v in tf.global_variables('generator/') if 'ExponentialMovingAverage' not in v.op.name]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        averages = session.run(variables)
        for number in range(1, steps + 1):
            session.run(train_opt, feed)
            rate = min(decay, (1 + number) / (10 + number))  # the documented start of the average
            values = session.run(variables)
            averages = [rate * old + (1 - rate) * new for old, new in zip(averages, values, strict=True)]
        drawn, not_averaged = session.run([samples, plain])
        for variable, value in zip(variables, averages, strict=True):
            variable.load(value, session)
        np.testing.assert_allclose(drawn, session.run(plain), rtol=1e-3, atol=1e-4)
    assert np.abs(drawn - not_averaged).max() > 1e-3


@pytest.mark.parametrize('dropout', [0.0, 0.5])
@pytest.mark.parametrize('decay', [0, 0.5])
def test_refreshed_statistics_are_those_of_the_sampling_weights_without_dropout(decay, dropout):
    step = tf.train.get_or_create_global_step()
    ema = tf.train.ExponentialMovingAverage(decay, step) if decay else None
    _, train_opt, feed, _ = build('alternating', ema)
    z = tf.constant(normal(64, 6))
    dropping = tuple(layer._replace(dropout=True) for layer in SMALL.generator[:-1]) + SMALL.generator[-1:]
    refresh = dcgan.refresh_statistics(SMALL._replace(dropout=dropout, generator=dropping), z, ema)
    samples, of_batch = (dcgan.generator(SMALL, z, training, reuse=True, ema=ema) for training in (False, True))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for _ in range(3):
            session.run(train_opt, feed)
        trained = session.run(tf.trainable_variables())
        before = np.abs(np.subtract(*session.run([samples, of_batch]))).max()
        session.run(refresh)
        after = np.abs(np.subtract(*session.run([samples, of_batch]))).max()
        np.testing.assert_equal(session.run(tf.trainable_variables()), trained)
    assert before > 0.1 and after < 0.02  # what is left: the averages hold the unbiased variance


def test_placeholders_have_the_shapes_of_the_article():
    real, z, learning_rate = dcgan.model_inputs(30, 20, 3, 100)
    shapes = [placeholder.shape.as_list() for placeholder in (real, z, learning_rate)]
    assert shapes == [[None, 20, 30, 3], [None, 100], []]
