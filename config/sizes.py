"""Images of another size, or greyscale: the flag, and the networks of a system for them."""

import argparse
import math
import re
from dataclasses import replace

from common import cli
from systems import Layer, System

MIN_SIDE, MAX_SIDE = 16, 1024  # pixels
MIN_SMALLEST = 4  # pixels of the shorter side of a generator's smallest map, if it is not the published one


def image_size(size: int | str) -> int | str:
    """An argparse type: the side of square images, or 'HEIGHTxWIDTH'."""
    text = str(size)
    sides = [int(side) for side in text.split('x')] if re.fullmatch(r'\d{1,9}(x\d{1,9})?', text, re.ASCII) else [0]
    if not MIN_SIDE <= min(sides) <= max(sides) <= MAX_SIDE:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not the side of a square, or HEIGHTxWIDTH, pixels, from {MIN_SIDE} to {MAX_SIDE}'
        )
    return sides[0] if len(set(sides)) == 1 else f'{sides[0]}x{sides[1]}'


def resized(published: System, size: int | str, channels: int) -> System:
    """A published system for images of another size and number of channels.

    As in the DCGAN paper, both networks have a layer of stride 2 for each doubling of the sides. Counted from the
    image, layers have the published channels and batch normalisation; extra ones repeat the last. Raises UserError if
    the networks cannot have that size.
    """
    system = replace(published, image_size=size, channels=channels)
    height, width, _ = system.image_shape
    generator, discriminator = published.generator, published.discriminator
    strided, smallest = sum(layer.stride == 2 for layer in generator), generator[0].output
    assert isinstance(smallest, tuple)

    # The smallest map stays the published one if the size is the published one times a power of two. Otherwise its
    # shorter side is at least the published one and MIN_SMALLEST, and less than twice that; all layers are SAME then.
    more = doublings(published.image_shape[0], height) if height == width else None
    if more is None:
        layers = int(math.log2(min(height, width) / max(MIN_SMALLEST, smallest[0])))
        step, more = 2**layers, layers - strided
        if height % step or width % step:
            fitting = image_size(f'{height // step * step}x{width // step * step}')
            raise cli.UserError(f'--image-size {size}: the sides must be multiples of {step}, for example {fitting}')
        smallest = height // step, width // step
        generator = tuple(replace(layer, padding='SAME') for layer in generator)

    # Layers are added and removed next to the smallest map, so both networks are listed from there to the image.
    change = grow if more > 0 else shrink
    dense, *hidden, last = change(generator, abs(more))
    dense, last = replace(dense, output=(*smallest[:2], dense.channels)), last.with_channels(channels)
    convolutions = change(discriminator[-2::-1], abs(more))[::-1]  # without the dense layer at its end
    return replace(system, generator=(dense, *hidden, last), discriminator=(*convolutions, discriminator[-1]))


def doublings(side: int, other: int) -> int | None:
    """The n with other = side * 2**n, negative for halvings, or None: 28 to 112 is 2, 64 to 32 is -1."""
    return next((n for n in range(-6, 7) if side * 2.0**n == other), None)  # 2**6 is MAX_SIDE / MIN_SIDE


def grow(layers: tuple[Layer, ...], more: int) -> list[Layer]:
    """`layers`, from the smallest map to the image, with `more` copies of the second layer of stride 2.

    With 1 more, 2x2x512 256/2 128/2 3/2 becomes 2x2x512 512/2 256/2 128/2 3/2 (channels/stride).
    """
    second = [index for index, layer in enumerate(layers) if layer.stride == 2][1]
    longer = layers[:second] + layers[second : second + 1] * more + layers[second:]
    return recounted(longer, layers[:1] * more + layers)


def shrink(layers: tuple[Layer, ...], fewer: int) -> list[Layer]:
    """`layers`, from the smallest map to the image, without `fewer` layers of stride 2: the second, the third, ...

    With 1 fewer, 4x4x1024 512/2 256/2 128/2 3/2 becomes 4x4x512 256/2 128/2 3/2 (channels/stride).
    """
    first, *others = [index for index, layer in enumerate(layers) if layer.stride == 2]
    gone = [*others, first][:fewer]
    kept = tuple(layer for index, layer in enumerate(layers) if index not in gone)
    return recounted(kept, layers[-len(kept) :])


def recounted(layers: tuple[Layer, ...], published: tuple[Layer, ...]) -> list[Layer]:
    """`layers` with the channels and the batch normalisation of the `published` ones."""
    return [
        replace(layer.with_channels(other.channels), batch_norm=other.batch_norm)
        for layer, other in zip(layers, published, strict=True)
    ]
