"""Sample values of images: 8 bits per sample for every kind that Pillow reads, or an error for an unknown range."""

import numpy as np
from PIL import Image

from dataset import DataError

STRIP = 1 << 20  # number of pixels converted at a time, which bounds the memory
# TIFF tags
BITS, PHOTOMETRIC, PLANAR, COLOR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING = 258, 262, 284, 320, 338, 339, 530
MAX_VALUES = 341, 281  # SMaxSampleValue, MaxSampleValue
SIGNED = 2  # value of SampleFormat


def strips(box):
    """Divide a box (left, top, right, bottom) into boxes of about STRIP pixels, from top to bottom."""
    left, top, right, bottom = box
    rows = max(1, STRIP // (right - left))
    for y in range(top, bottom, rows):
        yield left, y, right, min(y + rows, bottom)


def to_rgb(image: Image.Image, box) -> Image.Image:
    """The part of an image of 8-bit samples inside `box` (left, top, right, bottom) as RGB, on white."""
    left, top, right, bottom = box
    if bottom - top > 1 and (right - left) * (bottom - top) > STRIP:
        rgb = Image.new('RGB', (right - left, bottom - top))
        for strip in strips(box):
            rgb.paste(to_rgb(image, strip), (0, strip[1] - top))
        return rgb
    image = image.crop(box)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
    return image.convert('RGB')


def to_8_bits(image, content: bytes) -> Image.Image:
    """Convert an image, just opened from `content`, to 8-bit samples unless Pillow does that by itself.

    Raises DataError for kinds that Pillow reads wrong and for values of an unknown range.
    """
    bits, declared, transparent = 8, 0, image.info.get('transparency')
    match image.format:
        case 'JPEG':
            if image.mode == 'CMYK' and 'adobe' not in image.info:
                raise DataError('a CMYK image that does not say whether it is inverted (no Adobe segment)')
        case 'PNG':
            bits = content[24]
            if image.mode == 'P' and image.palette is None:
                raise DataError('damaged: the palette is missing')
            if transparent is not None and image.mode == 'L':  # Pillow scales only the pixels
                image.info['transparency'] = transparent % (1 << bits) * 255 // ((1 << bits) - 1)
            if transparent is not None and image.mode == 'RGB' and bits == 16:
                raise DataError('Pillow cannot read a transparent color of 16 bits')
        case 'TIFF':
            check_tiff(image)
            bits = image.tag_v2.get(BITS, (1,))[0]
            declared = 4095 if bits == 12 else declared_maximum(image.tag_v2)
            if image.mode == 'La':  # multiplied by the transparency
                return image.convert('LA')
            if image.mode == 'RGBA' and EXTRA_SAMPLES not in image.tag_v2:
                image = image.convert('RGB')  # a fourth sample is transparency only if the file says so
        case 'PPM':
            arguments = image.tile[0][3]  # (mode, maximum) except for the maxima 255 and 65535
            bits = 16 if image.mode == 'I' or isinstance(arguments, tuple) and arguments[-1] > 255 else 8
        case 'GIF':
            # Around a first frame that is smaller than the canvas, Pillow repeats the first color of the palette.
            if (box := image.tile[0][1]) != (0, 0, *image.size):
                canvas = Image.new('RGBA', image.size, (0, 0, 0, 0))
                canvas.paste(image.crop(box).convert('RGBA'), box[:2])
                return canvas
        case 'BMP' | 'DIB':
            if image.mode == 'RGBA' and image.getextrema()[3] == (0, 0):
                return image.convert('RGB')  # many programs leave the fourth sample empty
    if image.mode[0] in 'IF':
        return scale_grey(image, bits, declared, transparent)
    if bits == 16:  # Pillow keeps only the upper 8 bits of colors
        colors = zip(image.getbands(), image.getextrema(), strict=True)
        brightest = max(extrema[1] for band, extrema in colors if band != 'A')
        if 0 < brightest < 16 or declared not in (0, 65535):
            raise DataError('Pillow cannot read colors of fewer than 16 bits in 16: scale them to 0..65535')
    return image


def check_tiff(image) -> None:
    """Raise DataError for kinds of TIFF that Pillow reads wrong without an error."""
    tags = image.tag_v2
    bits, photometric, extra = tags.get(BITS, (1,))[0], tags.get(PHOTOMETRIC), tags.get(EXTRA_SAMPLES, ())
    raw, planes = image.info['compression'] == 'raw', tags.get(PLANAR) == 2 and len(image.getbands()) > 1
    flaws = {
        'no PhotometricInterpretation': photometric is None,
        'signed 8-bit samples': bits == 8 and SIGNED in tags.get(SAMPLE_FORMAT, ()),
        'compressed 32-bit samples in big-endian order': bits == 32 and not raw and tags.prefix == b'MM',
        'uncompressed planes of 16 bits': planes and bits == 16 and raw,
        'planes of YCbCr or Lab': planes and photometric in (6, 8),
        'planes multiplied by the transparency': planes and 1 in extra,
        'uncompressed YCbCr with subsampling': raw and photometric == 6 and tags.get(SUBSAMPLING) != (1, 1),
        'a palette of 8-bit values': 'P' in image.getbands() and max(tags[COLOR_MAP]) < 256,
    }
    for flaw, found in flaws.items():
        if found:
            raise DataError(f'Pillow cannot read a TIFF image with {flaw}')


def declared_maximum(tags) -> int:
    """The value of white that a TIFF image declares, 2**n - 1 (other maxima are statistics), or 0."""
    for tag in MAX_VALUES:
        value = float(np.max(tags.get(tag, 0)))
        if value >= 1 and value.is_integer() and int(value) & int(value) + 1 == 0:
            return int(value)
    return 0


def scale_grey(image, bits: int, declared: int, transparent: int | None) -> Image.Image:
    """Scale grey of 16 or 32 bits to 8, with alpha 0 where the value is `transparent`. Raises DataError."""
    tags = image.tag_v2 if image.format == 'TIFF' else {}
    # White is the declared maximum, otherwise the smallest of the usual ones that is not exceeded. If the brightest
    # value is less than 1/16 of that, white is unknown: 12 bits in 16, for example, would look black.
    image = image.convert('I') if image.mode == 'I;16B' else image  # another byte order, which lacks operations
    darkest, brightest = image.getextrema()
    limit = (1 << bits - (SIGNED in tags.get(SAMPLE_FORMAT, ()))) - 1
    usual = (1, 255, 65535) if image.mode == 'F' else (255, min(65535, limit), limit)
    known = declared > 0 and brightest <= declared
    white = declared if known else next((value for value in usual if brightest <= value), 0)
    if not 0 <= darkest <= brightest <= white or not known and 0 < brightest <= white / 16:
        raise DataError(f'values from {darkest:g} to {brightest:g} of an unknown range: scale them to 0..255')

    grey, alpha = Image.new('L', image.size), Image.new('L', image.size, 255)
    for box in strips((0, 0, *image.size)):
        values = np.asarray(image.crop(box), np.float64)
        if not np.isfinite(values).all():
            raise DataError('values that are not finite')
        levels = np.rint(values * (255 / white)).astype(np.uint8)
        grey.paste(Image.fromarray(255 - levels if tags.get(PHOTOMETRIC) == 0 else levels), box[:2])
        if transparent is not None:
            alpha.paste(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)), box[:2])
    return grey if transparent is None else Image.merge('LA', (grey, alpha))
