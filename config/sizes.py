"""Pictures of another size, or in grey: the flag, and the networks that a system gets for them."""

import argparse
import math
import re
from dataclasses import replace

from common import cli
from systems import Layer, System

MIN_SIDE, MAX_SIDE = 16, 1024  # pixels
MIN_SMALLEST = 4  # pixels of the shorter side of a generator's smallest map, if it is not the published one


def image_size(text: str) -> int | str:
    """An argparse type: the side of square images, or 'HEIGHTxWIDTH'."""
    sides = [int(side) for side in text.split('x')] if re.fullmatch(r'\d{1,9}(x\d{1,9})?', text, re.ASCII) else [0]
    if not MIN_SIDE <= min(sides) <= max(sides) <= MAX_SIDE:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not the side of a square, or HEIGHTxWIDTH, pixels, from {MIN_SIDE} to {MAX_SIDE}'
        )
    return sides[0] if len(set(sides)) == 1 else f'{sides[0]}x{sides[1]}'


def resized(published: System, size: int | str, channels: int) -> System:
    """A published system for images of another size and number of channels.

    Raises UserError if its networks cannot have that size.
    As in the DCGAN paper, both networks have a layer of stride 2 for each doubling of the sides. Where the size is
    the published one times a power of two, the smallest map is the published one. Otherwise the shorter side of the
    generator's is at least the published one and MIN_SMALLEST, and less than twice as much, so the sides must be
    multiples of a power of two; its layers are SAME then. Layers are added and removed beside the smallest map.
    Counted from the image, a layer has the published channels and batch normalisation; further ones are as the last.
    """
    system = replace(published, image_size=size, channels=channels)
    generator, discriminator = published.generator, published.discriminator
    first, strided = generator[0].output, sum(layer.stride == 2 for layer in generator)
    assert isinstance(first, tuple)
    (height, width, _), more = system.image_shape, math.log2(system.image_shape[0] / published.image_shape[0])
    if height == width and more.is_integer():
        smallest = first[:2]
    else:
        doublings = int(math.log2(min(height, width) / max(MIN_SMALLEST, first[0])))
        step, more = 2**doublings, doublings - strided
        if height % step or width % step:
            fitting = image_size(f'{height // step * step}x{width // step * step}')
            raise cli.UserError(f'--image-size {size}: the sides must be multiples of {step} here, as in {fitting}')
        smallest = height // step, width // step
        generator = tuple(replace(layer, padding='SAME') for layer in generator)
    dense, *others = lengthened(generator, int(more))
    dense, last = replace(dense, output=(*smallest, dense.channels)), others.pop().with_channels(channels)
    convolutions = lengthened(discriminator[-2::-1], int(more))[::-1]
    return replace(system, generator=(dense, *others, last), discriminator=(*convolutions, discriminator[-1]))


def lengthened(layers: tuple[Layer, ...], more: int) -> list[Layer]:
    """`layers`, the one at the smallest map first, with `more` layers of stride 2; see `resized`."""
    strided = [index for index, layer in enumerate(layers) if layer.stride == 2]
    gone = (strided[1:] + strided[:1])[: max(0, -more)]
    copies = {strided[1]: 1 + max(0, more)}
    kept = [layer for index, layer in enumerate(layers) if index not in gone for _ in range(copies.get(index, 1))]
    counted = (layers[:1] * max(0, more) + layers)[-len(kept) :]
    return [
        replace(layer.with_channels(published.channels), batch_norm=published.batch_norm)
        for layer, published in zip(kept, counted, strict=True)
    ]
