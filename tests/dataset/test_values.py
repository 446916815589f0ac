"""Sample values: every kind becomes 8 bits with the right values, or is an error that says why."""

import io
import struct

import numpy as np
import pytest
from image_files import COLORS, GREY, chunk, pack, png, quadrants, saved, tiff
from PIL import Image

import helper
from dataset import DataError

RIGHT = [40, 90, 160, 220]
FLOAT, SIGNED = {339: [3]}, {339: [2]}  # SampleFormat
WHITE_IS_ZERO = {262: [0]}


def read(content: bytes, channels=3) -> list:
    return quadrants(helper.get_image(io.BytesIO(content), 64, 64, channels=channels))


def grey_tiff(values, kind: str, order: str, tags: dict) -> bytes:
    """A TIFF file of grey samples of a NumPy type."""
    samples = np.asarray(values).astype(order + kind)
    return tiff(samples.tobytes(), {258: [8 * samples.itemsize], 262: [1]} | tags, order)


def exactly(scale):
    return np.rint(GREY * scale)


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize(
    'values, kind, tags',
    [
        (GREY / 255, 'f4', FLOAT),
        (GREY, 'f4', FLOAT),
        (GREY * 257, 'f4', FLOAT),
        (GREY / 255 / 20, 'f4', FLOAT | {341: [1.0]}),  # dark, but the maximum is declared
        (GREY / 255, 'f4', FLOAT | {341: [220 / 255]}),  # the largest value, not the largest possible one
        (GREY, 'i4', SIGNED),
        (GREY * 257, 'i4', SIGNED),
        (GREY * ((1 << 31) // 256), 'i4', SIGNED),
        (GREY, 'i2', SIGNED),
        (exactly(32767 / 255), 'i2', SIGNED),
        (GREY * 257, 'u2', {}),
        (GREY * 257, 'u2', {281: [220 * 257]}),
        (GREY, 'u2', {}),
        (exactly(4095 / 255), 'u2', {281: [4095]}),
        (exactly(1023 / 255), 'u2', {281: [1023]}),
        (exactly(16383 / 255), 'i4', SIGNED | {281: [16383]}),
        (GREY, 'u1', {}),
    ],
)
def test_grey_of_every_type_and_range_has_the_right_values(values, kind, tags, order):
    right = [2, 4, 8, 11] if np.max(values) < 0.1 else RIGHT
    assert np.abs(np.subtract(read(grey_tiff(values, kind, order, tags)), right)).max() <= 1


@pytest.mark.parametrize(
    'values, kind, tags, order',
    [
        (255 - GREY, 'u1', {}, '<'),
        (255 - GREY, 'u1', {}, '>'),
        (65535 - GREY * 257, 'u2', {}, '<'),
        (1 - GREY / 255, 'f4', FLOAT, '<'),
        (1 - GREY / 255, 'f4', FLOAT, '>'),
        (255 - GREY, 'f4', FLOAT, '<'),
        (4095 - exactly(4095 / 255), 'u2', {281: [4095]}, '<'),
    ],
)
def test_white_is_zero_is_not_inverted(values, kind, tags, order):
    assert read(grey_tiff(values, kind, order, tags | WHITE_IS_ZERO)) == RIGHT


@pytest.mark.parametrize(
    'bits, right', [(1, [0, 0, 255, 255]), (2, [0, 85, 170, 255]), (4, [34, 85, 153, 221]), (12, RIGHT)]
)
@pytest.mark.parametrize('white_is_zero', [False, True])
def test_samples_of_fewer_bits_are_scaled(bits, right, white_is_zero):
    most = (1 << bits) - 1
    values = np.rint(GREY * (most / 255)).astype(int)
    if bits == 1:
        values = (GREY > 127).astype(int)
    if bits < 12 and not white_is_zero:
        assert read(png(values, bits, 0)) == right
    stored = most - values if white_is_zero else values
    content = tiff(b''.join(pack(row, bits) for row in stored), {258: [bits], 262: [0 if white_is_zero else 1]})
    if bits == 12 and white_is_zero:
        with pytest.raises(DataError, match='Pillow cannot read'):
            read(content)
    else:
        assert read(content) == right


@pytest.mark.parametrize(
    'content, reason',
    [
        (grey_tiff(exactly(4095 / 255), 'u2', '<', {}), 'values from 642 to 3533 of an unknown range'),
        (png(exactly(4095 / 255), 16, 0), 'values from 642 to 3533 of an unknown range'),
        (png(np.repeat(exactly(4095 / 255), 3, 1), 16, 2), 'fewer than 16 bits in 16'),
        (b'P6 64 64 65535\n' + np.repeat(GREY * 16, 3, 1).astype('>u2').tobytes(), 'fewer than 16 bits in 16'),
        (grey_tiff(GREY / 255 * 1000, 'f4', '<', FLOAT), 'values from 156.863 to 862.745 of an unknown range'),
        (grey_tiff(GREY / 255 - 0.5, 'f4', '>', FLOAT), 'values from -0.343137 to 0.362745 of an unknown range'),
        (grey_tiff(np.where(GREY == 90, np.nan, GREY), 'f4', '<', FLOAT), 'not finite'),
        (grey_tiff(GREY - 100, 'i4', '<', SIGNED), 'values from -60 to 120 of an unknown range'),
        (grey_tiff(GREY / 255, 'f8', '<', FLOAT), 'a kind that Pillow cannot read'),
        (grey_tiff(GREY // 2, 'i1', '<', SIGNED), 'signed 8-bit'),
        (tiff(GREY.astype('u1').tobytes(), {258: [8]}), 'no PhotometricInterpretation'),
        (tiff(GREY.astype('u1').tobytes(), {258: [8], 262: [3], 320: list(range(256)) * 3}), 'a palette of 8-bit'),
        (tiff(bytes(64 * 64 * 6), {258: [16] * 3, 262: [2], 277: [3], 284: [2]}), 'uncompressed planes of 16 bits'),
        (png(np.repeat(GREY * 257, 3, 1), 16, 2, chunk(b'tRNS', bytes(6))), 'transparent color of 16 bits'),
        (png(GREY, 8, 3), 'the palette is missing'),
    ],
)  # fmt: skip
def test_values_whose_range_is_unknown_are_an_error_that_says_why(content, reason):
    with pytest.raises(DataError, match=reason):
        read(content)


@pytest.mark.parametrize('bits', [1, 2, 4, 8, 16])
@pytest.mark.parametrize('channels', [1, 3])
def test_the_transparent_value_of_grey_becomes_white(bits, channels):
    values = np.rint(GREY * (((1 << bits) - 1) / 255)).astype(int)
    opaque = read(png(values, bits, 0), channels)
    for index, value in enumerate(quadrants(values[..., np.newaxis])):
        expected = [255 if each == opaque[index] else each for each in opaque]
        assert read(png(values, bits, 0, chunk(b'tRNS', struct.pack('>H', value))), channels) == expected


def test_transparent_colors_become_white():
    palette = bytes(np.repeat(RIGHT, 3).tolist())
    indices = np.searchsorted(RIGHT, GREY)
    for bits in (2, 4, 8):
        assert read(png(indices, bits, 3, chunk(b'PLTE', palette))) == RIGHT
        assert read(png(indices, bits, 3, chunk(b'PLTE', palette), chunk(b'tRNS', b'\xff\0'))) == [40, 255, 160, 220]
    rgb = np.repeat(GREY, 3, 1)
    assert read(png(rgb, 8, 2, chunk(b'tRNS', struct.pack('>3H', 90, 90, 90)))) == [40, 255, 160, 220]
    alpha = (GREY != 90) * 65535
    assert read(png(np.dstack([GREY * 257, alpha]).reshape(64, -1), 16, 4)) == [40, 255, 160, 220]
    assert read(png(np.dstack([GREY * 257] * 3 + [alpha]).reshape(64, -1), 16, 6)) == [40, 255, 160, 220]


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize(
    'extra, fourth, right',
    [
        ({}, 0, RIGHT),  # undeclared: not transparency
        ({}, 128, RIGHT),
        ({338: [0]}, 0, RIGHT),
        ({338: [2]}, 255, RIGHT),
        ({338: [2]}, 0, [255] * 4),
        ({338: [1]}, 255, RIGHT),
    ],
)
def test_a_fourth_sample_is_transparency_only_if_the_file_says_so(order, bits, extra, fourth, right):
    samples = np.dstack([GREY] * 3 + [np.full_like(GREY, fourth)]) * (257 if bits == 16 else 1)
    tags = {258: [bits] * 4, 262: [2], 277: [4]} | extra
    assert read(tiff(samples.astype(f'{order}u{bits // 8}').tobytes(), tags, order)) == right


def test_premultiplied_grey_and_colors_have_their_values_on_white():
    half = np.dstack([GREY // 2, np.full_like(GREY, 128)]).astype('u1')
    expected = np.array(RIGHT) / 2 + 127
    tags = {258: [8, 8], 262: [1], 277: [2], 338: [1]}
    assert np.abs(read(tiff(half.tobytes(), tags)) - expected).max() <= 2
    tags = {258: [8] * 4, 262: [2], 277: [4], 338: [1]}
    assert np.abs(read(tiff(half[..., [0, 0, 0, 1]].tobytes(), tags)) - expected).max() <= 2


@pytest.mark.parametrize('fourth', [None, 2])  # ExtraSamples
def test_planes_have_their_colors(fourth):
    planes, tags = COLORS.transpose(2, 0, 1).tobytes(), {258: [8] * 3, 262: [2], 277: [3], 284: [2]}
    if fourth is not None:
        planes, tags = planes + bytes([255]) * 4096, tags | {258: [8] * 4, 277: [4], 338: [fourth]}
    assert read(tiff(planes, tags, planes=tags[277][0])) == [[255, 0, 0], [0, 255, 0], [0, 0, 255], 128]


@pytest.mark.parametrize('mode', ['CMYK', 'YCbCr'])
def test_cmyk_and_ycbcr_have_their_colors(mode):
    for content in (saved(Image.fromarray(COLORS).convert(mode), name) for name in ('TIFF', 'JPEG')):
        face = helper.get_image(io.BytesIO(content), 64, 64)
        assert np.abs(face[[16, 16, 48, 48], [16, 48, 16, 48]] - COLORS[::32, ::32].reshape(4, 3).astype(int)).max() < 4


def test_a_cmyk_jpeg_that_may_be_inverted_is_an_error():
    content = saved(Image.fromarray(COLORS).convert('CMYK'), 'JPEG')
    start = content.index(b'\xff\xee')  # the Adobe segment
    with pytest.raises(DataError, match='does not say whether it is inverted'):
        read(content[:start] + content[start + 16 :])


@pytest.mark.parametrize('disposal', [None, 2])
@pytest.mark.parametrize('transparency', [None, 0])
def test_the_canvas_around_a_smaller_first_frame_of_a_gif_is_white(disposal, transparency):
    frame = Image.fromarray(np.searchsorted(RIGHT, GREY).astype('u1')[16:48, 16:48], 'P')
    frame.putpalette(np.repeat([*RIGHT, *[0] * 252], 3).astype('u1').tobytes())
    options = {'disposal': disposal, 'transparency': transparency}
    content = bytearray(saved(frame, 'GIF', **{key: value for key, value in options.items() if value is not None}))
    content[6:10] = struct.pack('<HH', 64, 64)  # the canvas
    descriptor = content.index(b',' + bytes(4) + struct.pack('<HH', 32, 32))
    content[descriptor + 1 : descriptor + 5] = struct.pack('<HH', 16, 16)
    pixels = helper.get_image(io.BytesIO(bytes(content)), 64, 64)[..., 0]
    right = np.where((GREY == 40) & (transparency == 0), 255, GREY)
    np.testing.assert_array_equal(pixels, np.pad(right[16:48, 16:48], 16, constant_values=255))


@pytest.mark.parametrize('alpha', [0, 255])
def test_an_empty_fourth_sample_of_a_bmp_is_not_transparency(alpha):
    header = struct.pack('<IiiHHIIiiII', 108, 64, -64, 1, 32, 3, 0, 0, 0, 0, 0)
    masks = struct.pack('<4I', 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
    samples = np.dstack([GREY] * 3 + [np.full_like(GREY, alpha)]).astype('u1').tobytes()
    assert read(struct.pack('<2sIHHI', b'BM', 122 + len(samples), 0, 0, 122) + header + masks + samples) == RIGHT


@pytest.mark.parametrize('image_format', ['PNG', 'WEBP', 'GIF'])
def test_an_animation_shows_its_first_frame(image_format):
    first = Image.fromarray(GREY.astype('u1')).convert('RGB')
    frames = {'save_all': True, 'append_images': [first.rotate(90)]}
    lossless = {'lossless': True} if image_format == 'WEBP' else {}
    assert read(saved(first, image_format, **frames, **lossless)) == RIGHT


@pytest.mark.parametrize(
    'content',
    [
        b'P5 64 64 100\n' + np.rint(GREY / 2.55).astype('u1').tobytes(),
        b'P5 64 64 4095\n' + exactly(4095 / 255).astype('>u2').tobytes(),
        b'P6 64 64 4095\n' + np.repeat(exactly(4095 / 255), 3, 1).astype('>u2').tobytes(),
        b'P2 64 64 1000\n' + ' '.join(map(str, exactly(1000 / 255).astype(int).ravel())).encode(),
        b'Pf 64 64 -1\n' + (GREY[::-1] / 255).astype('<f4').tobytes(),
        b'Pf 64 64 1\n' + GREY[::-1].astype('>f4').tobytes(),
        saved(Image.fromarray(GREY.astype('u1')).convert('RGB'), 'BMP')[14:],  # DIB
    ],
)
def test_pnm_pfm_and_dib_have_the_right_values(content):
    assert np.abs(np.subtract(read(content), RIGHT)).max() <= 1


def test_lab_is_converted():
    lab = np.dstack([GREY, np.zeros_like(GREY), np.zeros_like(GREY)]).astype('u1')  # a and b are signed
    result = read(tiff(lab.tobytes(), {258: [8] * 3, 262: [8], 277: [3]}))
    lightness = (np.array(RIGHT) / 255 * 100 + 16) / 116
    expected = (1.055 * lightness ** (3 / 2.4) - 0.055) * 255
    assert np.abs(np.subtract(result, expected)).max() <= 2
