"""Pictures of faces: enlarged, labelled, animated."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

import helper
from common.files import replacing

LABEL_HEIGHT, MAX_GIF_SIDE = 14, 480  # pixels
MAX_GIF_PIXELS = 1 << 24  # total over all frames: a GIF of noise then has 23 MB
PALETTE_FRAMES = 16  # frames from which the palette is computed


def enlarge(face: np.ndarray, scale: int) -> Image.Image:
    """`face` (H, W, C) with each pixel enlarged to `scale` x `scale`."""
    return ImageOps.scale(helper.to_image(face), scale, Image.Resampling.NEAREST)


def label(face: np.ndarray, caption: str, scale: int) -> np.ndarray:
    """`face` (H, W, C) enlarged, with `caption` below it: uint8 (H * scale + LABEL_HEIGHT, W * scale, 3)."""
    labelled = ImageOps.expand(enlarge(face, scale), (0, 0, 0, LABEL_HEIGHT))
    ImageDraw.Draw(labelled).text((2, labelled.height - LABEL_HEIGHT + 1), caption, fill='white')
    return np.asarray(labelled.convert('RGB'))


def labelled_grid(faces, captions, scale: int, columns: int | None = None) -> Image.Image:
    """A grid of `faces` (N, H, W, C), each with its caption; columns: see `helper.images_square_grid`."""
    labelled = [label(face, caption, scale) for face, caption in zip(faces, captions, strict=True)]
    return helper.images_square_grid(np.array(labelled), columns=columns)


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Arrange pictures of any size in a row on black, with gaps between them and aligned at the bottom."""
    lefts = np.cumsum([0, *(picture.width + LABEL_HEIGHT for picture in pictures)])
    row = Image.new('RGB', (lefts[-1] - LABEL_HEIGHT, max(picture.height for picture in pictures)))
    for left, picture in zip(lefts, pictures, strict=False):
        row.paste(picture, (left, row.height - picture.height))
    return row


def evenly_spaced(items: list, count: int) -> list:
    """At most `count` of `items`, evenly spaced, including the first and the last."""
    indices = np.linspace(0, len(items) - 1, min(len(items), count)).round().astype(int)
    return [items[index] for index in indices]


def gif_bounds(width: int, height: int) -> tuple[tuple[int, int], int]:
    """The size of `width` x `height` frames in a GIF, (width, height), and the maximal number of frames."""
    scale = min(1, MAX_GIF_SIDE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return size, max(2, MAX_GIF_PIXELS // math.prod(size))


def save_gif(frames: list[Image.Image], path: Path, duration: int, last: int | None = None) -> None:
    """Save frames of one size as a GIF that loops forever, scaled down and thinned out to its `gif_bounds`.

    duration, last: milliseconds for which each frame, or the last one, is shown.
    """
    size, max_frames = gif_bounds(*frames[0].size)
    frames = [frame.resize(size, Image.Resampling.BOX) for frame in evenly_spaced(frames, max_frames)]
    # All frames share a palette and are not dithered, so that still colours do not flicker.
    palette = Image.fromarray(np.concatenate(evenly_spaced(frames, PALETTE_FRAMES))).quantize()
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [duration] * len(others) + [last or duration]
    with replacing(path) as temporary:
        first.save(temporary, 'GIF', save_all=True, append_images=others, duration=durations, loop=0, optimize=False)
