"""What each article published, as data: one entry per system, and `recommended` and `recommended64`, which are ours.

The values in an entry are the article's unless marked `ours`. Where an article is silent, the defaults of `System`
hold: ours as well, taken from the DCGAN paper (Radford, Metz and Chintala, 2015, arXiv:1511.06434) unless another
reason is given. The comment after a layer is the shape of its output, (height, width, channels).
"""

from dataclasses import dataclass, field, replace
from typing import Any

from common.cli import number

OPTIMIZERS = ('adam', 'rmsprop')
AUGMENTS = ('none', 'translation', 'color-translation', 'color-translation-cutout')
UPDATE_ORDERS = ('alternating', 'simultaneous')
CHANNELS = (3, 1)
LATENTS = ('uniform', 'normal')
# The type that layers compute in. Weights, losses, batch norm statistics and optimisers are always float32.
# A precision can also be 'auto': bf16 on hardware that computes it faster, else fp32.
PRECISIONS = {'fp32': 'float32', 'bf16': 'bfloat16'}

FRACTION, STEPS, EPOCHS = number(float, 0, 1), number(int, 1, 10**9), number(int, 1, 1_000_000)


@dataclass(frozen=True)
class Setting:
    """A setting of a run: it has a flag of `train.py` and a value in run.json."""

    default: Any  # None: unset, which is then one of its values
    values: Any  # a tuple of choices, bool, list (of names), or an argparse type
    group: str  # heading in `train.py --help`
    help: str
    changeable: bool = False  # whether a resumed run may change it: it affects neither networks nor saved variables
    path: bool = False  # whether it is a path on this machine
    older: Any = ...  # its value in older runs, which lack it; ...: no run lacks it


def setting(*description: Any, **more: Any) -> Any:
    """A field of `System` that is also a setting of a run; it takes the arguments of `Setting`."""
    return field(default=description[0], metadata={'setting': Setting(*description, **more)})


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
    """Everything that makes up one published system. Each `setting` has a flag of `train.py` that overrides it."""

    article: str
    image_size: int | str  # side of the square images, pixels; of others 'HEIGHTxWIDTH'
    generator: tuple[Layer, ...]
    discriminator: tuple[Layer, ...]
    # Images and latents. Ours: the crop, as in `oreilly`.
    channels: int = setting(3, CHANNELS, 'data', '3 for colour images, 1 for greyscale', older=3)
    crop: int = setting(108, number(int, 1, 178), 'data', 'side of the square kept of an aligned image of 178x218')
    latent_size: int = setting(100, number(int, 1, 65_536), 'networks', 'dimension of the latents')
    latent: str = setting('uniform', LATENTS, 'networks', 'distribution of the latents: U(-1, 1) or N(0, 1)')
    # Layers.
    leaky_slope: float = setting(0.2, FRACTION, 'networks', 'negative slope of the leaky ReLU')
    dropout: float = setting(0.0, number(float, 0, 0.99), 'networks', 'dropout rate in the layers that have dropout')
    weight_stddev: float = setting(0.02, number(float, 0, 10), 'networks', 'initial weights: N(0, X), or Glorot if 0')
    # The labels of the objective.
    real_label: float = setting(1.0, FRACTION, 'objective', changeable=True,
        help="discriminator's label for real images; 0.9: smoothing")  # fmt: skip
    fake_label: float = setting(0.0, FRACTION, 'objective', changeable=True,
        help="discriminator's label for generated images")  # fmt: skip
    wanted_label: float = setting(1.0, FRACTION, 'objective', "generator's label for its own images", changeable=True)
    label_noise: float = setting(0.0, FRACTION, 'objective', changeable=True,
        help="move the discriminator's labels towards each other by a random amount up to this")  # fmt: skip
    # The discriminator. Freezing its first layers: Mo et al. (2020, arXiv:2002.10964).
    discriminator_batch_norm: bool = setting(True, bool, 'networks', older=True,
        help='batch normalisation in the layers of the discriminator that have it')  # fmt: skip
    freeze_discriminator: int = setting(0, number(int, 0, 100), 'networks', older=0,
        help='do not train the first N layers of the discriminator; requires --init-from')  # fmt: skip
    # R1, the penalty on its gradient at real images (Mescheder et al., 2018, arXiv:1801.04406), applied lazily.
    r1: float = setting(0.0, number(float, 0, 1e6), 'objective', changeable=True, older=0.0,
        help="weight of R1, the penalty on the discriminator's gradient at real images; 0: no penalty")  # fmt: skip
    r1_every: int = setting(16, number(int, 1, 10_000), 'objective', changeable=True, older=16,
        help='apply R1 every N steps, scaled by N')  # fmt: skip
    # The input of the discriminator, in -1..1.
    flip: float = setting(0.0, FRACTION, 'data', 'probability of mirroring a real image', changeable=True, older=0.0)
    augment: str = setting('none', AUGMENTS, 'objective', changeable=True, older='none',
        help="augmentation of the discriminator's input")  # fmt: skip
    augment_target: float = setting(0.0, FRACTION, 'objective', older=0.0,
        help='adapt the probability of augmentation: mean(sign(D(x) - 1/2)) becomes X; 0: augment all')  # fmt: skip
    instance_noise: float = setting(0.0, number(float, 0, 10), 'objective', changeable=True, older=0.0,
        help="stddev of noise on D's input")  # fmt: skip
    # Steps and optimisers. Ours: the order of updates, as in Goodfellow et al. (2014).
    batch_size: int = setting(128, number(int, 2, 65_536), 'training', 'images per step', changeable=True)
    update_order: str = setting('alternating', UPDATE_ORDERS, 'training', changeable=True,
        help='update D before G, or both at once')  # fmt: skip
    optimizer: str = setting('adam', OPTIMIZERS, 'training', 'optimiser of both networks')
    learning_rate: float = setting(2e-4, number(float, 0, 1, exclusive=True), 'training', changeable=True,
        help='learning rate of G and D')  # fmt: skip
    learning_rate_ratio: float = setting(1.0, number(float, 0, 1000, exclusive=True), 'training', changeable=True,
        help="the discriminator's learning rate divided by the generator's", older=1.0)  # fmt: skip
    learning_rate_decay: float = setting(0.0, FRACTION, 'training', changeable=True,
        help='divide the learning rate at step n by 1 + n * X')  # fmt: skip
    beta1: float = setting(0.5, number(float, 0, 0.9999), 'training', changeable=True,
        help="Adam's decay of the mean gradient")  # fmt: skip
    clip_value: float = setting(0.0, number(float, 0, 1e9), 'training', changeable=True,
        help='clip gradients to -X..X; 0: no clipping')  # fmt: skip
    precision: str = setting('fp32', ('auto', *PRECISIONS), 'device', 'precision of layers; auto: bf16 if faster')
    # Ours (Yaz et al., 2019, arXiv:1806.04498): steadier, sharper samples at no cost.
    ema: float = setting(0.999, number(float, 0, 0.999999), 'training',
        "decay of the moving average of the generator's weights, used for samples; 0: no average")  # fmt: skip
    # Length and sample grids, in epochs or in steps.
    epochs: int | None = setting(None, EPOCHS, 'schedule', 'passes over the data', changeable=True)
    steps: int | None = setting(None, STEPS, 'schedule', 'steps in total', changeable=True)
    sample_every: int | None = setting(None, STEPS, 'schedule', 'steps between sample grids', changeable=True)
    sample_epochs: int | None = setting(None, EPOCHS, 'schedule', 'epochs between sample grids', changeable=True)
    samples: int = setting(64, number(int, 1, 4096), 'schedule', 'faces in a sample grid')
    # Conditions; ours.
    attributes: tuple[str, ...] = ()  # names of the attributes that condition the generator
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
        # but the last. Ours: kernels, sizes, and the depths in between, `oreilly`'s doubled.
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
# Kernels of 4x4, which a stride of 2 divides, are less work than 5x5 kernels. R1 keeps the discriminator from winning,
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
