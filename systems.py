"""What exactly did each article publish? One entry a system, pure data.

A value marked `ours` is not in the article: there the article is silent, and the value is that of the
DCGAN paper (Radford, Metz and Chintala, 2015, arXiv:1511.06434), unless a reason is given.
"""

from typing import NamedTuple

# Discriminator first and then the generator against it, or both gradients at the same point.
UPDATE_ORDERS = ('alternating', 'simultaneous')
# What layers compute in. Weights, losses, batch norm statistics and Adam are float32 in both.
PRECISIONS = {'fp32': 'float32', 'bf16': 'bfloat16'}


class Layer(NamedTuple):
    """One layer: what it computes, then batch normalisation if any, then its activation."""

    kind: str  # 'dense', 'conv2d' or 'conv2d_transpose'
    output: int | tuple[int, ...]  # channels; of a dense layer the whole shape, (H, W, channels) or (units,)
    kernel: int = 5  # side of the square kernel, pixels
    stride: int = 1
    padding: str = 'SAME'
    batch_norm: bool = False
    activation: str | None = 'leaky_relu'


class System(NamedTuple):
    """Everything that makes one published system."""

    article: str
    image_size: int  # side of the square RGB image, pixels
    latent_size: int
    latent_range: tuple[float, float]  # of the uniform distribution that latents are drawn from
    generator: tuple[Layer, ...]
    discriminator: tuple[Layer, ...]
    leaky_slope: float
    weight_stddev: float  # initial weights are N(0, weight_stddev)
    label_smoothing: float  # label of a real image, and the one the generator wants; a fake's is 0
    learning_rate: float
    beta1: float
    update_order: str  # one of UPDATE_ORDERS
    precision: str  # one of PRECISIONS
    ema: float  # decay of the averaged generator that samples are drawn from; 0: none
    batch_size: int
    epochs: int
    sample_every: int  # steps


SYSTEMS = {
    'oreilly': System(
        article="D. Monn, Deep convolutional generative adversarial networks with TensorFlow, O'Reilly",
        image_size=28,
        latent_size=100,
        latent_range=(-1.0, 1.0),
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
        weight_stddev=0.02,  # ours
        label_smoothing=0.9,
        learning_rate=2e-4,
        beta1=0.5,
        update_order='alternating',
        precision='fp32',
        ema=0.999,  # ours (Yaz et al., 2019, arXiv:1806.04498): steadier, sharper samples for nothing
        batch_size=16,
        epochs=2,
        sample_every=400,
    )
}
