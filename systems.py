"""What each article published, as data: one entry per system, and `recommended` and `recommended64`, which are ours.

The values in an entry are the article's unless marked `ours`. Where an article is silent, the defaults of `System`
hold: ours as well, taken from the DCGAN paper (Radford, Metz and Chintala, 2015, arXiv:1511.06434) unless another
reason is given. The comment beside a layer is the shape of its output, (height, width, channels).
"""

from dataclasses import dataclass, replace

# Discriminator first and then the generator against it, or both gradients at the same point.
UPDATE_ORDERS = ('alternating', 'simultaneous')
OBJECTIVES = ('standard', 'hinge', 'relativistic')
OPTIMIZERS = ('adam', 'rmsprop')
AUGMENTS = ('none', 'translation', 'color-translation', 'color-translation-cutout')
CHANNELS = (3, 1)  # red, green and blue; grey
LATENTS = ('uniform', 'normal')  # U(-1, 1), N(0, 1)
# What layers compute in. Weights, losses, batch norm statistics and optimisers are float32 in either case. Where a
# precision is chosen there is 'auto', too: bf16 on hardware that computes it faster, else fp32.
PRECISIONS = {'fp32': 'float32', 'bf16': 'bfloat16'}


@dataclass(frozen=True)
class Layer:
    """One layer: its kind, then batch normalisation if any, its activation, and dropout if any."""

    kind: str  # 'dense', 'conv2d' or 'conv2d_transpose'
    output: int | tuple[int, ...]  # channels; of a dense layer the whole shape, (height, width, channels) or (units,)
    kernel: int = 5  # side of the square kernel, pixels
    stride: int = 1
    padding: str = 'SAME'
    batch_norm: bool = False
    activation: str | None = 'leaky_relu'
    dropout: bool = False

    @property
    def channels(self) -> int:
        return self.output[-1] if isinstance(self.output, tuple) else self.output

    def with_channels(self, channels: int) -> 'Layer':
        return replace(self, output=(*self.output[:-1], channels) if isinstance(self.output, tuple) else channels)


@dataclass(frozen=True)
class System:
    """Everything that makes up one published system."""

    article: str
    image_size: int | str  # side of the square images, pixels; of others 'HEIGHTxWIDTH'
    generator: tuple[Layer, ...]
    discriminator: tuple[Layer, ...]
    channels: int = 3  # of the images, one of CHANNELS
    crop: int = 108  # side of the central square kept of an aligned image of 178x218; ours: as in `oreilly`
    latent_size: int = 100
    latent: str = 'uniform'  # one of LATENTS
    leaky_slope: float = 0.2
    dropout: float = 0.0  # rate, in the layers with dropout
    weight_stddev: float = 0.02  # initial weights are N(0, weight_stddev); 0: Glorot uniform
    objective: str = 'standard'  # one of OBJECTIVES; only the standard one has labels
    real_label: float = 1.0  # the discriminator's label for real images,
    fake_label: float = 0.0  # and for generated ones;
    wanted_label: float = 1.0  # the generator's label for its images
    label_noise: float = 0.0  # the discriminator's labels move towards each other by a random amount up to this
    discriminator_batch_norm: bool = True  # False: none, also in the layers that have it
    spectral_norm: bool = False  # of the discriminator's kernels (Miyato et al., 2018, arXiv:1802.05957)
    freeze_discriminator: int = 0  # its first layers that are not trained (Mo et al., 2020, arXiv:2002.10964)
    r1: float = 0.0  # weight of the penalty on the discriminator's gradient at real images; 0: none
    r1_every: int = 16  # steps between penalties, each as many times as large
    flip: float = 0.0  # probability of mirroring a real image
    augment: str = 'none'  # differentiable augmentation of what the discriminator sees, one of AUGMENTS
    instance_noise: float = 0.0  # standard deviation of noise on what the discriminator sees, -1..1
    update_order: str = 'alternating'  # one of UPDATE_ORDERS; ours: that of Goodfellow et al. (2014)
    optimizer: str = 'adam'  # one of OPTIMIZERS
    learning_rate: float = 2e-4
    learning_rate_ratio: float = 1.0  # the discriminator's learning rate divided by the generator's
    learning_rate_decay: float = 0.0  # at step n the rate is learning_rate / (1 + n * learning_rate_decay)
    beta1: float = 0.5  # Adam's decay of the mean gradient
    clip_value: float = 0.0  # gradients are clipped to -clip_value..clip_value; 0: no clipping
    precision: str = 'fp32'  # one of PRECISIONS, or 'auto'
    # Decay of the moving average of the generator's weights that samples are drawn with; 0: no average. Ours (Yaz et
    # al., 2019, arXiv:1806.04498): steadier, sharper samples at no cost.
    ema: float = 0.999
    batch_size: int = 128
    epochs: int | None = None  # how long to train: epochs,
    steps: int | None = None  # or steps
    sample_every: int | None = None  # when to draw a grid of samples: steps,
    sample_epochs: int | None = None  # or epochs
    samples: int = 64  # faces in a grid
    attributes: tuple[str, ...] = ()  # names of what the generator can be asked for; ours
    combinations: tuple[str, ...] = ()  # how they occur together in the data: '101' is with, without, with

    @property
    def z_dim(self) -> int:
        """The length of a latent with its condition, a value for each attribute, at the end."""
        return self.latent_size + len(self.attributes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, _, width = str(self.image_size).partition('x')
        return int(height), int(width or height), self.channels


# The DCGAN paper's networks for 64x64.
PAPER_GENERATOR = (
    Layer('dense', (4, 4, 1024), batch_norm=True, activation='relu'),  # (4, 4, 1024)
    Layer('conv2d_transpose', 512, stride=2, batch_norm=True, activation='relu'),  # (8, 8, 512)
    Layer('conv2d_transpose', 256, stride=2, batch_norm=True, activation='relu'),  # (16, 16, 256)
    Layer('conv2d_transpose', 128, stride=2, batch_norm=True, activation='relu'),  # (32, 32, 128)
    Layer('conv2d_transpose', 3, stride=2, activation='tanh'),  # (64, 64, 3)
)
PAPER_DISCRIMINATOR = (  # ours: the mirror image; the paper shows the generator only
    Layer('conv2d', 128, stride=2),  # (32, 32, 128)
    Layer('conv2d', 256, stride=2, batch_norm=True),  # (16, 16, 256)
    Layer('conv2d', 512, stride=2, batch_norm=True),  # (8, 8, 512)
    Layer('conv2d', 1024, stride=2, batch_norm=True),  # (4, 4, 1024)
    Layer('dense', (1,), activation=None),  # one logit
)

SYSTEMS = {
    'oreilly': System(
        article="D. Monn, Deep convolutional generative adversarial networks with TensorFlow, O'Reilly",
        image_size=28,
        crop=108,
        latent_size=100,
        latent='uniform',
        generator=(
            Layer('dense', (2, 2, 512), batch_norm=True),  # (2, 2, 512)
            Layer('conv2d_transpose', 256, stride=2, padding='VALID', batch_norm=True),  # (7, 7, 256)
            Layer('conv2d_transpose', 128, stride=2, batch_norm=True),  # (14, 14, 128)
            Layer('conv2d_transpose', 3, stride=2, activation='tanh'),  # (28, 28, 3)
        ),
        discriminator=(
            Layer('conv2d', 64, stride=2),  # (14, 14, 64)
            Layer('conv2d', 128, stride=2, batch_norm=True),  # (7, 7, 128)
            Layer('conv2d', 256, batch_norm=True),  # (7, 7, 256)
            Layer('dense', (1,), activation=None),  # one logit
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
        # The article has depths from 1024 down to 3, and batch normalisation, leaky ReLU and dropout in each layer
        # but the last. Ours: kernels, sizes, and the depths in between, which are those of `oreilly` doubled.
        generator=(
            Layer('dense', (2, 2, 1024), batch_norm=True, dropout=True),  # (2, 2, 1024)
            Layer('conv2d_transpose', 512, stride=2, padding='VALID', batch_norm=True, dropout=True),  # (7, 7, 512)
            Layer('conv2d_transpose', 256, stride=2, batch_norm=True, dropout=True),  # (14, 14, 256)
            Layer('conv2d_transpose', 3, stride=2, activation='tanh'),  # (28, 28, 3)
        ),
        # The article has four layers with batch normalisation in all but the first. Ours: the rest, as in `oreilly`.
        discriminator=(
            Layer('conv2d', 64, stride=2),  # (14, 14, 64)
            Layer('conv2d', 128, stride=2, batch_norm=True),  # (7, 7, 128)
            Layer('conv2d', 256, batch_norm=True),  # (7, 7, 256)
            Layer('dense', (1,), activation=None),  # one logit
        ),
        dropout=0.2,  # ours: the article gives no rate, and with one half small faces stay blurred
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
        latent='uniform',  # in grids too; the article's control vectors, N(0, 1) / 2, are not what it trains on
        generator=(
            Layer('dense', (16, 16, 128)),  # (16, 16, 128)
            Layer('conv2d', 256),  # (16, 16, 256)
            Layer('conv2d_transpose', 256, kernel=4, stride=2),  # (32, 32, 256)
            Layer('conv2d_transpose', 256, kernel=4, stride=2),  # (64, 64, 256)
            Layer('conv2d_transpose', 256, kernel=4, stride=2),  # (128, 128, 256)
            Layer('conv2d', 512),  # (128, 128, 512)
            Layer('conv2d', 512),  # (128, 128, 512)
            # The article's images are in 0..1, which does not fit tanh. Ours: -1..1, as in all the others.
            Layer('conv2d', 3, kernel=7, activation='tanh'),  # (128, 128, 3)
        ),
        discriminator=(
            Layer('conv2d', 256, kernel=3, padding='VALID'),  # (126, 126, 256)
            Layer('conv2d', 256, kernel=4, stride=2, padding='VALID'),  # (62, 62, 256)
            Layer('conv2d', 256, kernel=4, stride=2, padding='VALID'),  # (30, 30, 256)
            Layer('conv2d', 256, kernel=4, stride=2, padding='VALID'),  # (14, 14, 256)
            Layer('conv2d', 256, kernel=4, stride=2, padding='VALID', dropout=True),  # (6, 6, 256)
            Layer('dense', (1,), activation=None),  # one logit
        ),
        leaky_slope=0.3,  # ours: the default of Keras, which the listing does not change
        dropout=0.4,
        weight_stddev=0.0,  # ours: the default of Keras; without batch normalisation much depends on it
        real_label=0.0,
        fake_label=1.0,
        wanted_label=0.0,
        label_noise=0.05,  # ours: towards each other; the article adds it, and no probability reaches 1.05
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
        crop=178,  # ours: the largest square, as resizing and cropping in PyTorch gives
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
        epochs=25,  # ours: as `ranjan`; the article trains until D is right half of the time, which may never happen
        sample_epochs=1,  # ours
    ),
}

# Ours: better faces in the same time than with the published settings, found by experiment (docs/experiments.md).
# Kernels of 4x4, which a stride of 2 divides, are less work than those of 5x5. R1 keeps the discriminator from winning,
# so that both networks can learn twice as fast.
SYSTEMS['recommended'] = replace(
    SYSTEMS['oreilly'],
    article='none: settings found by experiment, for 28x28',
    generator=(
        Layer('dense', (7, 7, 256), batch_norm=True),  # (7, 7, 256)
        Layer('conv2d_transpose', 128, kernel=4, stride=2, batch_norm=True),  # (14, 14, 128)
        Layer('conv2d_transpose', 3, kernel=4, stride=2, activation='tanh'),  # (28, 28, 3)
    ),
    discriminator=(
        Layer('conv2d', 64, kernel=4, stride=2),  # (14, 14, 64)
        Layer('conv2d', 128, kernel=4, stride=2, batch_norm=True),  # (7, 7, 128)
        Layer('conv2d', 256, kernel=4, stride=2, batch_norm=True),  # (4, 4, 256)
        Layer('dense', (1,), activation=None),  # one logit
    ),
    weight_stddev=0.0,
    r1=0.01,
    flip=0.5,
    learning_rate=4e-4,
    learning_rate_decay=2e-5,
    ema=0.9995,
    precision='auto',
    epochs=None,
    steps=50_000,
    sample_every=1000,
)
SYSTEMS['recommended64'] = replace(
    SYSTEMS['recommended'],
    article='none: settings found by experiment, for 64x64',
    image_size=64,
    crop=178,
    generator=(
        Layer('dense', (4, 4, 512), batch_norm=True),  # (4, 4, 512)
        Layer('conv2d_transpose', 256, kernel=4, stride=2, batch_norm=True),  # (8, 8, 256)
        Layer('conv2d_transpose', 128, kernel=4, stride=2, batch_norm=True),  # (16, 16, 128)
        Layer('conv2d_transpose', 64, kernel=4, stride=2, batch_norm=True),  # (32, 32, 64)
        Layer('conv2d_transpose', 3, kernel=4, stride=2, activation='tanh'),  # (64, 64, 3)
    ),
    discriminator=(
        Layer('conv2d', 64, kernel=4, stride=2),  # (32, 32, 64)
        Layer('conv2d', 128, kernel=4, stride=2, batch_norm=True),  # (16, 16, 128)
        Layer('conv2d', 256, kernel=4, stride=2, batch_norm=True),  # (8, 8, 256)
        Layer('conv2d', 512, kernel=4, stride=2, batch_norm=True),  # (4, 4, 512)
        Layer('dense', (1,), activation=None),  # one logit
    ),
    r1=0.03,
    batch_size=32,
)
