"""What exactly did each article publish? One entry a system, pure data; and one of our own, `recommended`.

What an entry names is its article's, unless it is marked `ours`. Where an article is silent the defaults of
`System` hold: `ours` as well, and the DCGAN paper's values (Radford, Metz and Chintala, 2015, arXiv:1511.06434)
unless another reason is given.
"""

from typing import NamedTuple

# Discriminator first and then the generator against it, or both gradients at the same point.
UPDATE_ORDERS = ('alternating', 'simultaneous')
OPTIMIZERS = ('adam', 'rmsprop')
AUGMENTS = ('none', 'translation', 'color-translation', 'color-translation-cutout')
LATENTS = ('uniform', 'normal')  # U(-1, 1), N(0, 1)
# What layers compute in. Weights, losses, batch norm statistics and optimisers are float32 in both.
PRECISIONS = {'fp32': 'float32', 'bf16': 'bfloat16'}


class Layer(NamedTuple):
    """One layer: what it computes, then batch normalisation if any, then its activation, then dropout if any."""

    kind: str  # 'dense', 'conv2d' or 'conv2d_transpose'
    output: int | tuple[int, ...]  # channels; of a dense layer the whole shape, (H, W, channels) or (units,)
    kernel: int = 5  # side of the square kernel, pixels
    stride: int = 1
    padding: str = 'SAME'
    batch_norm: bool = False
    activation: str | None = 'leaky_relu'
    dropout: bool = False


class System(NamedTuple):
    """Everything that makes one published system."""

    article: str
    image_size: int  # side of the square RGB image, pixels
    generator: tuple[Layer, ...]
    discriminator: tuple[Layer, ...]
    crop: int = 108  # side of the central square kept of an aligned image, 178x218; ours: that of `oreilly`
    latent_size: int = 100
    latent: str = 'uniform'  # one of LATENTS
    leaky_slope: float = 0.2
    dropout: float = 0.0  # the share of values that is 0 in training, in the layers with dropout
    weight_stddev: float = 0.02  # initial weights are N(0, weight_stddev); 0: Glorot's uniform ones
    real_label: float = 1.0  # what the discriminator should say of a real image,
    fake_label: float = 0.0  # and of a generated one,
    wanted_label: float = 1.0  # and what the generator wants it to say
    label_noise: float = 0.0  # the discriminator's labels move towards each other by up to so much, at random
    flip: float = 0.0  # the share of real images that are mirrored, at random
    augment: str = 'none'  # of the images that the discriminator sees, one of AUGMENTS
    instance_noise: float = 0.0  # standard deviation of noise on the images that the discriminator sees, -1..1
    update_order: str = 'alternating'  # one of UPDATE_ORDERS; ours: as Goodfellow et al. (2014) have it
    optimizer: str = 'adam'  # one of OPTIMIZERS
    learning_rate: float = 2e-4
    learning_rate_ratio: float = 1.0  # the discriminator's learning rate, divided by the generator's
    learning_rate_decay: float = 0.0  # at step n the rate is learning_rate / (1 + n * learning_rate_decay)
    beta1: float = 0.5  # Adam's decay of the mean gradient
    clip_value: float = 0.0  # gradients are cut to -clip_value..clip_value; 0: not
    precision: str = 'fp32'  # one of PRECISIONS
    # Decay of the averaged generator that samples are drawn from, 0: none. Ours (Yaz et al., 2019,
    # arXiv:1806.04498): steadier, sharper samples for nothing.
    ema: float = 0.999
    batch_size: int = 128
    epochs: int | None = None  # passes over the data,
    steps: int | None = None  # or steps
    sample_every: int | None = None  # steps between grids,
    sample_epochs: int | None = None  # or epochs
    samples: int = 64  # faces in a grid


# The DCGAN paper's networks for 64x64.
PAPER_GENERATOR = (
    Layer('dense', (4, 4, 1024), batch_norm=True, activation='relu'),
    Layer('conv2d_transpose', 512, stride=2, batch_norm=True, activation='relu'),
    Layer('conv2d_transpose', 256, stride=2, batch_norm=True, activation='relu'),
    Layer('conv2d_transpose', 128, stride=2, batch_norm=True, activation='relu'),
    Layer('conv2d_transpose', 3, stride=2, activation='tanh'),
)
PAPER_DISCRIMINATOR = (  # the paper draws the generator only; ours: its mirror image
    Layer('conv2d', 128, stride=2),
    Layer('conv2d', 256, stride=2, batch_norm=True),
    Layer('conv2d', 512, stride=2, batch_norm=True),
    Layer('conv2d', 1024, stride=2, batch_norm=True),
    Layer('dense', (1,), activation=None),
)

SYSTEMS = {
    'oreilly': System(
        article="D. Monn, Deep convolutional generative adversarial networks with TensorFlow, O'Reilly",
        image_size=28,
        crop=108,
        latent_size=100,
        latent='uniform',
        generator=(
            Layer('dense', (2, 2, 512), batch_norm=True),
            Layer('conv2d_transpose', 256, stride=2, padding='VALID', batch_norm=True),
            Layer('conv2d_transpose', 128, stride=2, batch_norm=True),
            Layer('conv2d_transpose', 3, stride=2, activation='tanh'),
        ),
        discriminator=(
            Layer('conv2d', 64, stride=2),
            Layer('conv2d', 128, stride=2, batch_norm=True),
            Layer('conv2d', 256, batch_norm=True),
            Layer('dense', (1,), activation=None),
        ),
        leaky_slope=0.2,
        real_label=0.9,
        fake_label=0.0,
        wanted_label=0.9,
        optimizer='adam',
        learning_rate=2e-4,
        beta1=0.5,
        batch_size=16,
        epochs=2,
        sample_every=400,
    ),
    'sharma': System(
        article='S. Sharma, Celebrity Face Generation using GANs (Tensorflow Implementation)',
        image_size=28,
        # The article says: depths from 1024 down to 3, and batch normalisation, leaky ReLU and dropout in each
        # layer but the last. Ours: kernels, sizes and the depths between, those of `oreilly` doubled.
        generator=(
            Layer('dense', (2, 2, 1024), batch_norm=True, dropout=True),
            Layer('conv2d_transpose', 512, stride=2, padding='VALID', batch_norm=True, dropout=True),
            Layer('conv2d_transpose', 256, stride=2, batch_norm=True, dropout=True),
            Layer('conv2d_transpose', 3, stride=2, activation='tanh'),
        ),
        # The article says: four layers, batch normalisation but in the first. Ours: all else, that of `oreilly`.
        discriminator=(
            Layer('conv2d', 64, stride=2),
            Layer('conv2d', 128, stride=2, batch_norm=True),
            Layer('conv2d', 256, batch_norm=True),
            Layer('dense', (1,), activation=None),
        ),
        dropout=0.2,  # ours: the article gives no rate, and at one half small faces stay blurred
        real_label=1.0,
        fake_label=0.0,
        epochs=6,
        sample_epochs=1,
    ),
    'kdnuggets': System(
        article='N. S. Chauhan, Generate Realistic Human Face using GAN, KDnuggets (Keras)',
        image_size=128,
        crop=178,
        latent_size=100,
        latent='uniform',  # in its grids too: the article's control vectors, N(0, 1) / 2, are none it trains on
        generator=(
            Layer('dense', (16, 16, 128)),
            Layer('conv2d', 256),
            Layer('conv2d_transpose', 256, kernel=4, stride=2),
            Layer('conv2d_transpose', 256, kernel=4, stride=2),
            Layer('conv2d_transpose', 256, kernel=4, stride=2),
            Layer('conv2d', 512),
            Layer('conv2d', 512),
            # The article's images are 0..1, of which tanh is no match. Ours: -1..1, as in all others.
            Layer('conv2d', 3, kernel=7, activation='tanh'),
        ),
        discriminator=(
            Layer('conv2d', 256, kernel=3, padding='VALID'),
            Layer('conv2d', 256, kernel=4, stride=2, padding='VALID'),
            Layer('conv2d', 256, kernel=4, stride=2, padding='VALID'),
            Layer('conv2d', 256, kernel=4, stride=2, padding='VALID'),
            Layer('conv2d', 256, kernel=4, stride=2, padding='VALID', dropout=True),
            Layer('dense', (1,), activation=None),
        ),
        leaky_slope=0.3,  # ours: Keras's own, which the listing leaves as it is
        dropout=0.4,
        weight_stddev=0.0,  # ours: Keras's own, too; without batch normalisation it depends on them
        real_label=0.0,
        fake_label=1.0,
        wanted_label=0.0,
        label_noise=0.05,  # ours: towards each other. The article adds it, and no probability reaches 1.05
        optimizer='rmsprop',
        learning_rate=1e-4,
        learning_rate_decay=1e-8,
        clip_value=1.0,
        batch_size=16,
        steps=20_000,
        sample_every=50,
        samples=36,
    ),
    'ranjan': System(
        article='R. Ranjan, Using DCGAN to Generate Fake Images of Celebrities (PyTorch)',
        image_size=64,
        crop=178,  # ours: the largest square, which resizing and cropping in PyTorch gives
        latent='normal',
        generator=PAPER_GENERATOR,
        discriminator=PAPER_DISCRIMINATOR,
        real_label=1.0,
        fake_label=0.0,
        optimizer='adam',
        learning_rate=2e-4,
        beta1=0.5,
        epochs=25,
        sample_epochs=1,  # ours: the article shows curves
    ),
    'chandarana': System(
        article='K. Chandarana, Generating Images Of Celebrities That Have Never Existed (PyTorch)',
        image_size=64,
        crop=178,  # ours: as `ranjan`
        latent_size=100,
        latent='uniform',
        generator=PAPER_GENERATOR,
        discriminator=PAPER_DISCRIMINATOR,
        real_label=1.0,
        fake_label=0.0,
        epochs=25,  # ours: as `ranjan`; the article trains until D is at 50 %, which need never come
        sample_epochs=1,  # ours
    ),
}

# Ours: what drew good faces sooner than the published settings, where the processor has bf16 (docs/experiments.md).
SYSTEMS['recommended'] = SYSTEMS['oreilly']._replace(
    article='none: the networks of `oreilly`, with settings found by experiment',
    flip=0.5,
    learning_rate=4e-4,
    ema=0.9995,
    precision='bf16',
    epochs=None,
    steps=50_000,
    sample_every=1000,
)
