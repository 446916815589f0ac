import collections
from dataclasses import replace

import numpy as np
import pytest

import dcgan
import graph.augment
import graph.layers
from graph.session import open_session, tf
from systems import SYSTEMS, UPDATE_ORDERS, Layer

OREILLY = SYSTEMS['oreilly']
# The same kinds of layers, small enough to be quick.
SMALL = replace(
    OREILLY,
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
LEARNING_RATE = 0.01
# Without the kink of the leaky ReLU. Near it rounding alone changes a gradient fivefold, and no two ways to compute the
# same agree closely on every processor.
STRAIGHT = {'leaky_slope': 1.0}


pytestmark = pytest.mark.usefixtures('session')


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def initialize(session):
    session.run(tf.global_variables_initializer())


def model_inputs():
    """Placeholders for SMALL."""
    return dcgan.model_inputs(28, 28, 3, SMALL.latent_size)


def feed_of(rng, inputs, learning_rate=LEARNING_RATE):
    """What feeds placeholders with a batch of 8."""
    return dict(zip(inputs, (rng.uniform(-0.5, 0.5, (8, 28, 28, 3)), normal(rng, 8, 6), learning_rate), strict=True))


def build(rng, system=SMALL, ema=None):
    """A `dcgan.Batch`, the operation that trains on it, and what feeds them."""
    inputs = model_inputs()
    batch = dcgan.model_loss(system, *inputs[:2])
    return batch, dcgan.model_opt(system, batch, inputs[2], ema), feed_of(rng, inputs)


def operations_behind(*targets):
    """All operations that run with `targets`, operations or tensors."""
    found, pending = set(), [getattr(target, 'op', target) for target in targets]
    while pending:
        operation = pending.pop()
        if operation not in found:
            found.add(operation)
            pending += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    return found


# --- attributes

CONDITIONAL = replace(SMALL, attributes=('Smiling', 'Male', 'Young'))


def test_the_discriminator_adds_the_projection_onto_the_condition_to_its_logits(session, rng):
    linear = replace(CONDITIONAL, discriminator=SMALL.discriminator[-1:], discriminator_batch_norm=False)
    images, condition = normal(rng, 8, 28, 28, 3), rng.choice([-1, 1], (8, 3)).astype(np.float32)
    logits = dcgan.discriminator(linear, tf.constant(images), tf.constant(condition))
    initialize(session)
    kernel, bias = (
        variable.load(normal(rng, *variable.shape), session) or variable for variable in tf.trainable_variables()
    )
    kernel, bias = session.run([kernel, bias])
    assert kernel.shape == (28 * 28 * 3, 4)
    outputs = images.reshape(8, -1) @ kernel + bias
    expected = outputs[:, 0] + (outputs[:, 1:] * condition).sum(axis=1) / 3
    np.testing.assert_allclose(session.run(logits)[:, 0], expected, rtol=1e-3, atol=1e-2)


def test_real_and_generated_faces_have_the_condition_at_the_end_of_the_latents(session, rng):
    real, z, _ = dcgan.model_inputs(28, 28, 3, CONDITIONAL.z_dim)
    batch = dcgan.model_loss(CONDITIONAL, real, z)
    initialize(session)
    feed = {real: rng.uniform(-0.5, 0.5, (8, 28, 28, 3)), z: normal(rng, 8, 9)}
    values = session.run(batch, feed)
    np.testing.assert_array_equal(values.condition, feed[z][:, 6:])
    changed = session.run(batch, {**feed, z: np.hstack([feed[z][:, :6], -feed[z][:, 6:]])})
    assert (values.losses.d_real != changed.losses.d_real).all() and np.abs(values.fake - changed.fake).max() > 0.01


@pytest.mark.parametrize('order', UPDATE_ORDERS)
@pytest.mark.parametrize('changes', [{}, {'r1': 1.0}])
def test_a_step_trains_all_outputs_of_a_conditional_discriminator(session, rng, order, changes):
    system = replace(CONDITIONAL, update_order=order, **changes)
    inputs = dcgan.model_inputs(28, 28, 3, system.z_dim)
    train_opt = dcgan.model_opt(system, dcgan.model_loss(system, *inputs[:2]), inputs[2])
    initialize(session)
    (kernel,) = tf.trainable_variables('discriminator/layer3/dense/kernel')
    before = session.run(kernel)
    session.run(
        train_opt, dict(zip(inputs, (rng.uniform(-0.5, 0.5, (8, 28, 28, 3)), normal(rng, 8, 9), 0.01), strict=True))
    )
    after = session.run(kernel)
    assert before.shape[1] == 4 and np.isfinite(after).all() and (before != after).mean() > 0.9


# --- placeholders and networks


def test_placeholders_have_the_shapes_of_the_article():
    placeholders = dcgan.model_inputs(30, 20, 3, 100)
    assert [placeholder.shape.as_list() for placeholder in placeholders] == [[None, 20, 30, 3], [None, 100], []]
    assert {placeholder.dtype for placeholder in placeholders} == {tf.float32}


def test_the_discriminator_gives_each_image_one_logit_of_its_own(session, rng):
    images = normal(rng, 4, 28, 28, 3)
    placeholder = tf.placeholder(tf.float32, [None, 28, 28, 3])
    logits = dcgan.discriminator(replace(SMALL, discriminator=SMALL.discriminator[::2]), placeholder)
    initialize(session)
    together = session.run(logits, {placeholder: images})
    alone = [session.run(logits, {placeholder: images[n : n + 1]})[0] for n in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_generated_images_fill_the_range_of_tanh(session, rng):
    fake = dcgan.generator(replace(SMALL, weight_stddev=5.0), tf.constant(normal(rng, 8, 6)))
    initialize(session)
    images = session.run(fake)
    assert -1 <= images.min() < -0.99 and 0.99 < images.max() <= 1


def test_only_layers_that_have_dropout_use_it_and_only_in_training(session, rng):
    dropping = replace(SMALL, dropout=0.5, generator=(replace(SMALL.generator[0], dropout=True), *SMALL.generator[1:]))
    z = tf.constant(normal(rng, 8, 6))
    images = [
        dcgan.generator(system, z, training, reuse=tf.AUTO_REUSE)
        for training in (False, True)
        for system in (dropping, replace(dropping, dropout=0.0), replace(SMALL, dropout=0.5))
    ]
    initialize(session)
    sampling, training = np.split(np.array(session.run(images)), 2)
    np.testing.assert_array_equal(sampling[0], sampling[1])
    np.testing.assert_array_equal(training[1], training[2])
    assert np.abs(training[0] - training[1]).max() > 0.01


def test_a_discriminator_without_batch_norm_has_a_bias_in_each_layer():
    dcgan.discriminator(replace(SMALL, discriminator_batch_norm=False), tf.zeros([8, 28, 28, 3]))
    names = {variable.op.name for variable in tf.global_variables()}
    assert {f'discriminator/layer{number}/bias' for number in (1, 2, 3)} < names
    assert not any('batch_norm' in name for name in names)


# --- losses


@pytest.mark.parametrize(
    'labels',
    [(0.9, 0.0, 0.9), (1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.2, 0.7, 0.1)],
    ids=lambda labels: '-'.join(map(str, labels)),
)
def test_losses_are_cross_entropies_of_the_labels(session, rng, labels):
    real_label, fake_label, wanted_label = labels
    system = replace(SMALL, real_label=real_label, fake_label=fake_label, wanted_label=wanted_label)
    real, z, _ = inputs = model_inputs()
    batch = dcgan.model_loss(system, real, z)
    logits = dcgan.discriminator(SMALL, real * 2, reuse=True), dcgan.discriminator(SMALL, batch.fake, reuse=True)
    initialize(session)
    losses, logits = session.run([batch.losses, logits], feed_of(rng, inputs))
    of_real, of_fake = (1 / (1 + np.exp(-each.astype(np.float64))) for each in logits)

    def cross_entropy(p, label):
        return -np.mean(label * np.log(p) + (1 - label) * np.log(1 - p))

    d_loss = cross_entropy(of_real, real_label) + cross_entropy(of_fake, fake_label)
    np.testing.assert_allclose(losses.d_loss, d_loss, rtol=1e-5)
    np.testing.assert_allclose(losses.g_loss, cross_entropy(of_fake, wanted_label), rtol=1e-5)
    if real_label < fake_label:  # the logits are those of being generated, but the scores are still those of being real
        of_real, of_fake = 1 - of_real, 1 - of_fake
    assert losses.d_real.shape == losses.d_fake.shape == (8, 1)
    np.testing.assert_allclose(losses.d_real, of_real, rtol=1e-4)
    np.testing.assert_allclose(losses.d_fake, of_fake, rtol=1e-4)


@pytest.mark.parametrize('step, factor', [(0, 3), (1, 0), (2, 0), (3, 3)])
def test_r1_is_the_squared_gradient_at_real_images_every_few_steps(session, rng, step, factor):
    # A linear discriminator: its gradient is its kernel, whatever the image.
    linear = replace(SMALL, discriminator=SMALL.discriminator[-1:], r1=0.5, r1_every=3)
    real = tf.constant(normal(rng, 8, 4, 4, 3))
    dcgan.discriminator(linear, real)
    penalty = dcgan.gradient_penalty(linear, real)
    initialize(session)
    tf.train.get_or_create_global_step().load(step, session)
    (kernel,) = session.run(tf.trainable_variables('.*kernel'))
    np.testing.assert_allclose(session.run(penalty), factor * 0.5 / 2 * np.square(kernel).sum(), rtol=1e-5)


@pytest.mark.parametrize('size, groups', [(16, 2), (6, 3)])  # images of a batch
def test_r1_normalises_small_groups_of_images(session, rng, size, groups):
    # Linear but for the normalisation, whose gradient is that of Ioffe and Szegedy (2015).
    layers = Layer('conv2d', 5, kernel=1, batch_norm=True, activation=None), Layer('dense', (1,), activation=None)
    system = replace(SMALL, discriminator=layers, r1=0.5, r1_every=1, batch_size=size)
    real = normal(rng, size, 28, 28, 3)
    dcgan.discriminator(system, tf.constant(real))
    penalty = dcgan.gradient_penalty(system, tf.constant(real))
    gamma = np.arange(5)
    initialize(session)
    tf.trainable_variables('discriminator/layer1/batch_norm/gamma')[0].load(gamma, session)
    conv, dense = (kernel.squeeze() for kernel in session.run(tf.trainable_variables('discriminator/.*kernel')))
    upper = dense.reshape(28, 28, 5) * gamma
    squares = []
    for group in np.split(real.astype(float) @ conv, groups):
        scale = np.sqrt(group.var(axis=(0, 1, 2)) + 1e-3)
        normal_group = (group - group.mean(axis=(0, 1, 2))) / scale
        through_variance = normal_group * (upper * normal_group).mean(axis=(0, 1, 2))
        gradient = (upper - upper.mean(axis=(0, 1)) - through_variance) / scale @ conv.T
        squares += [np.square(image).sum() for image in gradient]
    np.testing.assert_allclose(session.run(penalty), 0.5 / 2 * np.mean(squares), rtol=1e-5)


@pytest.mark.parametrize('batch_norm', [True, False])
def test_the_gradient_of_r1_is_that_of_finite_differences(session, rng, batch_norm):
    system = replace(SMALL, discriminator_batch_norm=batch_norm, r1=2.0, r1_every=1, batch_size=4, **STRAIGHT)
    real = tf.constant(normal(rng, 4, 28, 28, 3))
    dcgan.discriminator(system, real)
    penalty = dcgan.gradient_penalty(system, real)
    kernels = tf.trainable_variables('.*kernel')
    gradients = tf.gradients(penalty, kernels)
    initialize(session)
    for kernel, gradient in zip(kernels, session.run(gradients), strict=True):
        value = session.run(kernel)
        direction = gradient / np.linalg.norm(gradient)
        ends = []
        for sign in (1, -1):
            kernel.load(value + sign * 1e-2 * direction, session)
            ends.append(session.run(penalty))
        kernel.load(value, session)
        np.testing.assert_allclose(np.subtract(*ends) / 2e-2, np.linalg.norm(gradient), rtol=0.02)


def test_the_discriminator_minimises_the_penalty_and_reports_its_loss_without_it(session, rng):
    batch, train_opt, feed = build(rng, replace(SMALL, r1=1e4, r1_every=1))
    inputs = model_inputs()
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        plain = dcgan.model_loss(SMALL, *inputs[:2])
    initialize(session)
    placeholders = dict(zip(inputs, feed.values(), strict=True))
    reported, expected = session.run([batch.losses.d_loss, plain.losses.d_loss], feed | placeholders)
    np.testing.assert_allclose(reported, expected, rtol=1e-6)
    first = session.run(batch.d_penalty, feed)
    for _ in range(20):
        session.run(train_opt, feed)
    assert session.run(batch.d_penalty, feed) < 0.1 * first
    assert plain.d_penalty.op.type == 'Const'


def test_scores_are_probabilities_of_being_real_even_if_the_real_label_is_0(session, rng):
    system = replace(SMALL, real_label=0.0, fake_label=1.0, wanted_label=0.0)
    real, z, learning_rate = inputs = model_inputs()
    losses = dcgan.model_loss(system, real, z).losses
    learn = dcgan.minimize(system, losses.d_loss, learning_rate, tf.trainable_variables('discriminator/'))
    initialize(session)
    feed = feed_of(rng, inputs)
    for _ in range(50):
        session.run(learn, feed)
    d_real, d_fake = session.run([losses.d_real, losses.d_fake], feed)
    assert d_real.min() > 0.8 and d_fake.max() < 0.2


@pytest.mark.parametrize(
    'label, noise, other_end',
    [(0.0, 0.05, 0.05), (1.0, 0.05, 0.95), (0.9, 0.1, 0.82), (0.2, 0.5, 0.5), (0.9, 0.0, 0.9)],
)
def test_noise_moves_labels_towards_the_opposite_one_by_at_most_its_amount(session, label, noise, other_end):
    logit, steps = 3.0, 400
    step = tf.train.get_or_create_global_step()
    one = dcgan.cross_entropy(tf.constant([[logit]]), label, noise)
    many, other = (dcgan.cross_entropy(tf.fill([10_000, 1], logit), label, noise) for _ in range(2))

    def at_step(number, tensor):
        step.load(number, session)
        return session.run(tensor)

    losses = np.array([at_step(number, one) for number in range(steps)], np.float64)
    of_many, again, of_other = (at_step(7, loss) for loss in (many, many, other))
    labels = (np.log1p(np.exp(logit)) - losses) / logit  # the loss is log(1 + e^logit) - label * logit
    low, high = sorted((label, other_end))
    assert low - 1e-6 <= labels.min() <= labels.max() <= high + 1e-6
    np.testing.assert_allclose([labels.min(), labels.max()], [low, high], atol=0.02 * (high - low) + 1e-6)
    mean = (label + other_end) / 2
    np.testing.assert_allclose(labels.mean(), mean, atol=4 * (high - low) / np.sqrt(12 * steps) + 1e-6)
    np.testing.assert_allclose(of_many, np.log1p(np.exp(logit)) - mean * logit, atol=0.04 * (high - low) + 1e-6)
    np.testing.assert_allclose(of_many, again, rtol=1e-6)  # the sum of many losses depends on how threads divide it
    assert (abs(of_many - of_other) > 1e-5) == bool(noise)


def test_only_the_labels_of_the_discriminator_have_noise(session, rng):
    real, z, _ = inputs = model_inputs()
    exact = dcgan.model_loss(SMALL, real, z).losses
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        noisy = dcgan.model_loss(replace(SMALL, label_noise=0.5), real, z).losses
    initialize(session)
    exact, noisy = session.run([exact, noisy], feed_of(rng, inputs))
    np.testing.assert_allclose(noisy.g_loss, exact.g_loss, rtol=1e-5)
    np.testing.assert_allclose(noisy.d_real, exact.d_real, rtol=1e-5)
    assert abs(noisy.d_loss - exact.d_loss) > 1e-3


@pytest.mark.parametrize('policy, passes', [('none', 0), ('color-translation', 3)])
def test_real_and_generated_images_are_augmented_and_samples_are_not(monkeypatch, policy, passes):
    seen = []
    monkeypatch.setattr(graph.augment, 'translation', lambda images: seen.append(images) or images)
    system = replace(SMALL, augment=policy)
    real, z, learning_rate = model_inputs()
    dcgan.model_opt(system, dcgan.model_loss(system, real, z), learning_rate)
    dcgan.generator(system, z, training=False, reuse=tf.AUTO_REUSE)
    assert len(seen) == passes  # real and generated images, and the generated ones again for the generator's update


def test_only_real_images_are_mirrored(session, rng):
    real, z, _ = inputs = model_inputs()
    plain = dcgan.model_loss(SMALL, real, z)
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        flipped = dcgan.model_loss(replace(SMALL, flip=1.0), real, z)
    initialize(session)
    feed = feed_of(rng, inputs)
    results = session.run(flipped, feed | {real: feed[real][:, :, ::-1]}), session.run(plain, feed)
    for mirrored, expected in zip(*((*result.losses, result.real, result.fake) for result in results), strict=True):
        np.testing.assert_allclose(mirrored, expected, rtol=1e-4, atol=1e-5)


# --- optimisers


def test_the_discriminators_learning_rate_is_the_generators_times_the_ratio(session, rng):
    _, train_opt, feed = build(rng, replace(SMALL, learning_rate_ratio=4.0, optimizer='adam'))
    kernels = [tf.trainable_variables(f'{name}/')[0] for name in ('discriminator', 'generator')]
    initialize(session)
    before = session.run(kernels)
    session.run(train_opt, feed)
    # The first step of Adam is as long as the learning rate, whatever the gradient.
    changes = [np.abs(new - old).max() for new, old in zip(session.run(kernels), before, strict=True)]
    np.testing.assert_allclose(changes, [4 * LEARNING_RATE, LEARNING_RATE], rtol=1e-2)


def rmsprop(w, gradient, rates):
    """`w` after steps as in Keras, except that the mean square starts at 1."""
    mean_square = 1.0
    for rate in rates:
        mean_square = 0.9 * mean_square + 0.1 * gradient(w) ** 2
        w = w - rate * gradient(w) / np.sqrt(mean_square + 1e-7)
    return w


def adam(w, gradient, rates, beta1=0.5, beta2=0.999):
    """`w` after steps as in Kingma and Ba (2015), in the more efficient order at the end of their section 2."""
    m = v = 0.0
    for number, rate in enumerate(rates, 1):
        m = beta1 * m + (1 - beta1) * gradient(w)
        v = beta2 * v + (1 - beta2) * gradient(w) ** 2
        w = w - rate * np.sqrt(1 - beta2**number) / (1 - beta1**number) * m / (np.sqrt(v) + 1e-8)
    return w


@pytest.mark.parametrize('clip', [0, 0.5])
@pytest.mark.parametrize('optimizer', [adam, rmsprop], ids=lambda optimizer: optimizer.__name__)
def test_optimisers_clip_gradients_and_let_the_learning_rate_decay(session, optimizer, clip):
    count, rate, decay = 6, 0.1, 0.25
    system = replace(SMALL, optimizer=optimizer.__name__, clip_value=clip, learning_rate_decay=decay)
    slopes, start = np.array([0.01, 0.3, 2, -40]), np.array([1.0, -2, 0.7, 1.5])
    w = tf.get_variable('w', initializer=start.astype(np.float32))
    loss = tf.reduce_sum(tf.constant(slopes, tf.float32) * w**2 / 2)
    learning_rate = tf.placeholder(tf.float32, [])
    learn = dcgan.minimize(system, loss, learning_rate, [w])
    next_step = tf.train.get_or_create_global_step().assign_add(1)
    initialize(session)
    for _ in range(count):
        session.run(learn, {learning_rate: rate})
        session.run(next_step)

    def unclipped(w):
        return slopes * w

    def gradient(w):
        return np.clip(slopes * w, -clip, clip) if clip else slopes * w

    rates = [rate / (1 + number * decay) for number in range(count)]
    expected = optimizer(start, gradient, rates)
    np.testing.assert_allclose(session.run(w), expected, rtol=1e-4)
    # Or else the test could not fail:
    assert np.abs(expected - optimizer(start, unclipped, rates)).max() > 1e-3 or not clip
    assert np.abs(expected - optimizer(start, gradient, [rate] * count)).max() > 1e-3


# --- training steps


def by_name(variables):
    return {variable.op.name: variable for variable in variables}


@pytest.mark.parametrize('update_order', UPDATE_ORDERS)
def test_the_generator_is_updated_against_the_discriminator_of_its_update_order(session, rng, update_order):
    batch, train_opt, feed = build(rng, replace(SMALL, update_order=update_order))
    g, d = (by_name(tf.trainable_variables(scope)) for scope in ('generator/', 'discriminator/'))
    gradients = tf.gradients(batch.losses.g_loss, list(g.values()))
    initialize(session)
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
        clear = np.abs(gradient) > 1e-4
        change = (g_after[name] - g_before[name])[clear]
        expected = -LEARNING_RATE * np.sign(gradient[clear])  # Adam's first step
        np.testing.assert_allclose(change, expected, rtol=1e-2, err_msg=name)


def test_a_step_with_learning_rate_0_changes_no_weight(session, rng):
    real, z, learning_rate = inputs = model_inputs()
    train_opt = dcgan.model_opt(SMALL, dcgan.model_loss(SMALL, real, z), learning_rate)
    initialize(session)
    before = session.run(tf.trainable_variables())
    session.run(train_opt, feed_of(rng, inputs, learning_rate=0.0))
    for old, new in zip(before, session.run(tf.trainable_variables()), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize('name', dcgan.Losses._fields)
def test_fetching_any_one_of_the_losses_makes_the_step(session, rng, name):
    inputs, step = model_inputs(), tf.train.get_or_create_global_step()
    ema = tf.train.ExponentialMovingAverage(0.5, step)
    losses = dcgan.training_step(SMALL, *inputs, ema)
    variables = tf.trainable_variables()
    averages = [ema.average(variable) for variable in tf.trainable_variables('generator/')]
    initialize(session)
    before = session.run([variables, averages])
    session.run(getattr(losses, name), feed_of(rng, inputs))
    after = session.run([variables, averages])
    assert session.run(step) == 1
    for old, new in zip(sum(before, []), sum(after, []), strict=True):
        assert (old != new).any()


def test_the_losses_of_a_step_are_those_before_its_update(session, rng):
    inputs = model_inputs()
    losses = dcgan.training_step(SMALL, *inputs)
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        plain = dcgan.model_loss(SMALL, *inputs[:2]).losses
    initialize(session)
    feed = feed_of(rng, inputs)
    expected = session.run(plain, feed)
    for value, before, after in zip(session.run(losses, feed), expected, session.run(plain, feed), strict=True):
        np.testing.assert_allclose(value, before, rtol=1e-5)
        assert np.abs(after - before).max() > 1e-3


def step_of_oreilly(system, batch_size=4):
    """Variables by name, losses and mean scores after one step from the same weights on the same batch."""
    with tf.Graph().as_default(), open_session() as session:
        real, z, learning_rate = dcgan.model_inputs(28, 28, 3, system.latent_size)
        losses = dcgan.training_step(system, real, z, learning_rate)
        rng = np.random.default_rng(0)
        feed = {
            real: rng.uniform(-0.5, 0.5, (batch_size, 28, 28, 3)),
            z: rng.uniform(-1, 1, (batch_size, system.latent_size)),
            learning_rate: 2e-4,
        }
        initialize(session)
        for variable in tf.trainable_variables():
            start = 1 if 'gamma' in variable.op.name else 0
            variable.load(start + 0.02 * rng.standard_normal(variable.shape), session)
        outcome = session.run(losses, feed)
        return session.run(by_name(tf.global_variables())), [np.mean(value) for value in outcome]


def test_a_step_with_fast_convolutions_is_that_with_those_of_tensorflow(monkeypatch):
    system = replace(OREILLY, **STRAIGHT)
    fast, fast_losses = step_of_oreilly(system)
    monkeypatch.setattr(graph.layers, 'convolution', tf.nn.conv2d)
    monkeypatch.setattr(
        graph.layers,
        'transposed_convolution',
        lambda x, kernels, sides, stride, padding: tf.nn.conv2d_transpose(
            x, kernels, [tf.shape(x)[0], *sides, kernels.shape[2]], stride, padding
        ),
    )
    plain, plain_losses = step_of_oreilly(system)
    np.testing.assert_allclose(fast_losses, plain_losses, rtol=1e-5)
    for name, value in plain.items():
        if '/Adam' in name:  # the gradients and their squares
            np.testing.assert_allclose(fast[name], value, atol=1e-4 * np.abs(value).max(), err_msg=name)
        elif 'kernel' in name:  # Adam's first step depends on the sign alone, even of gradients that are all rounding
            assert np.mean(np.abs(fast[name] - value) > 1e-6) < 1e-3, name


def types_behind(*targets):
    """The types T and U of the operations that run with `targets`, by the type of operation."""
    types = collections.defaultdict(set)
    for operation in operations_behind(*targets):
        for name in 'T', 'U':
            if number := operation.node_def.attr[name].type:
                types[operation.type, name].add(tf.as_dtype(number))
    return types


def test_samples_and_their_statistics_are_computed_in_float32():
    system = replace(SMALL, precision='bf16')
    samples = dcgan.generator(system, tf.zeros([8, 6]), training=False, reuse=tf.AUTO_REUSE)
    types = types_behind(samples, dcgan.store_statistics(system, tf.zeros([8, 6])))
    assert types['Conv2DBackpropInput', 'T'] == types['FusedBatchNormV3', 'T'] == {tf.float32}
    assert all(tf.bfloat16 not in found for found in types.values())


def test_bfloat16_is_for_layers_and_not_for_weights_statistics_losses_and_optimisers(rng):
    batch, train_opt, _ = build(rng, replace(SMALL, precision='bf16'))
    losses = *batch.losses, batch.d_penalty, batch.real, batch.fake
    assert {variable.dtype.base_dtype for variable in tf.global_variables()} == {tf.float32, tf.int64}  # and the step
    assert {loss.dtype for loss in losses} == {tf.float32}
    types = types_behind(train_opt, *losses)
    for name in ('MatMul', 'Conv2D', 'Conv2DBackpropInput', 'Conv2DBackpropFilter', 'LeakyRelu', 'LeakyReluGrad'):
        assert types[name, 'T'] == {tf.bfloat16}, name
    for name in ('FusedBatchNormV3', 'FusedBatchNormGradV3'):
        assert (types[name, 'T'], types[name, 'U']) == ({tf.bfloat16}, {tf.float32})  # U is that of the statistics
    for name in ('Log1p', 'Exp', 'Mean', 'Sigmoid', 'Tanh', 'ResourceApplyAdam'):
        assert types[name, 'T'] == {tf.float32}, name


def test_gradients_in_bfloat16_are_those_in_float32_but_for_rounding():
    system = replace(OREILLY, **STRAIGHT)
    exact, exact_losses = step_of_oreilly(system, batch_size=8)
    rounded, losses = step_of_oreilly(replace(system, precision='bf16'), batch_size=8)
    assert all(value.dtype == np.float32 for name, value in rounded.items() if name != 'global_step')
    np.testing.assert_allclose(losses, exact_losses, rtol=0.05)
    for name, value in exact.items():
        if name.endswith('kernel/Adam'):  # half of the gradient
            # The error is 0.01 with sums in float32 and 0.045 on processors that also round partial sums; with one of
            # the 25 pixels of the kernels left out it is 0.2.
            error = np.linalg.norm(rounded[name] - value) / np.linalg.norm(value)
            assert 0 < error < 0.14, (name, error)


def test_a_step_compiled_by_xla_has_the_same_outcome(session, rng):
    system = replace(SMALL, **STRAIGHT)
    _, train_opt, feed = build(rng, system)
    initialize(session)
    weights = session.run(tf.global_variables())
    session.run(train_opt, feed)
    plain = session.run(tf.global_variables())
    with tf.Graph().as_default(), tf.xla.experimental.jit_scope(), open_session() as compiling:
        _, train_opt, compiled_feed = build(rng, system)
        for variable, value in zip(tf.global_variables(), weights, strict=True):
            variable.load(value, compiling)
        options, metadata = tf.RunOptions(output_partition_graphs=True), tf.RunMetadata()
        compiling.run(train_opt, dict(zip(compiled_feed, feed.values(), strict=True)), options, metadata)
        variables = tf.global_variables()
        compiled = compiling.run(variables)
    assert any(node.op == '_XlaRun' for partition in metadata.partition_graphs for node in partition.node)
    for variable, value, expected in zip(variables, compiled, plain, strict=True):
        wrong = np.abs(value - expected) > 1e-3 * np.abs(expected).max() + 1e-6
        assert wrong.mean() < 0.01, variable.op.name


# --- samples and their statistics


def test_training_and_the_discriminator_store_no_statistics(session, rng):
    _, train_opt, feed = build(rng)
    assert tf.global_variables('.*moving_') == []
    dcgan.generator(SMALL, tf.zeros([2, 6]), training=False, reuse=tf.AUTO_REUSE)
    stored = tf.global_variables('.*moving_')
    assert [variable.op.name for variable in stored] == [
        f'generator/layer{number}/batch_norm/moving_{name}' for number in (1, 2, 3) for name in ('mean', 'variance')
    ]
    initialize(session)
    before = session.run(stored)
    session.run(train_opt, feed)
    np.testing.assert_equal(session.run(stored), before)


def test_stored_statistics_are_those_of_the_batch(session, rng):
    z = tf.constant(normal(rng, 64, 6))
    store_statistics = dcgan.store_statistics(SMALL, z)
    variables = {name: tf.global_variables(f'generator/layer1/{name}')[0] for name in ('dense', '.*mean', '.*variance')}
    initialize(session)
    session.run(store_statistics)
    kernel, mean, variance = session.run(list(variables.values()))
    x = (session.run(z) @ kernel).reshape(64 * 2 * 2, 8)
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(variance, x.var(axis=0, ddof=1), rtol=1e-3)


@pytest.mark.parametrize('dropout', [0.0, 0.5])
@pytest.mark.parametrize('decay', [0, 0.5])
def test_stored_statistics_are_those_of_the_sampling_weights_without_dropout(session, rng, decay, dropout):
    ema = tf.train.ExponentialMovingAverage(decay, tf.train.get_or_create_global_step()) if decay else None
    _, train_opt, feed = build(rng, ema=ema)
    z = tf.constant(normal(rng, 64, 6))
    dropping = tuple(replace(layer, dropout=True) for layer in SMALL.generator[:-1]) + SMALL.generator[-1:]
    store_statistics = dcgan.store_statistics(replace(SMALL, dropout=dropout, generator=dropping), z, ema)
    samples, of_batch = (
        dcgan.generator(SMALL, z, training, reuse=tf.AUTO_REUSE, ema=ema) for training in (False, True)
    )
    initialize(session)
    session.run(store_statistics)
    for _ in range(3):
        session.run(train_opt, feed)
    trained = session.run(tf.trainable_variables())
    before = np.abs(np.subtract(*session.run([samples, of_batch]))).max()
    session.run(store_statistics)
    after = np.abs(np.subtract(*session.run([samples, of_batch]))).max()
    np.testing.assert_equal(session.run(tf.trainable_variables()), trained)
    assert before > 0.1 and after < 0.02  # what remains: the stored variance is the unbiased one


def test_samples_use_the_averaged_weights(session, rng):
    decay, steps = 0.5, 4
    ema = tf.train.ExponentialMovingAverage(decay, tf.train.get_or_create_global_step())
    _, train_opt, feed = build(rng, ema=ema)
    z = tf.constant(normal(rng, 5, 6))
    samples, plain = (
        dcgan.generator(SMALL, z, training=False, reuse=tf.AUTO_REUSE, ema=average) for average in (ema, None)
    )
    variables = tf.trainable_variables('generator/')
    initialize(session)
    averages = session.run(variables)
    for number in range(1, steps + 1):
        session.run(train_opt, feed)
        rate = min(decay, (1 + number) / (10 + number))  # the documented start of the average
        values = session.run(variables)
        averages = [rate * old + (1 - rate) * new for old, new in zip(averages, values, strict=True)]
    averaged, not_averaged = session.run([samples, plain])
    for variable, value in zip(variables, averages, strict=True):
        variable.load(value, session)
    np.testing.assert_allclose(averaged, session.run(plain), rtol=1e-3, atol=1e-4)
    assert np.abs(averaged - not_averaged).max() > 1e-3
