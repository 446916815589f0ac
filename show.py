"""How does one see what was learned?"""

import math
from pathlib import Path

import numpy as np
from PIL import Image

import helper

MOST_FRAMES = 512
MOST_SIDE = 480  # pixels


def save_gif(frames, path: Path, duration: int):
    """Write PIL RGB images of one size as a GIF that loops for ever, `duration` milliseconds a frame.

    One palette for all and no dithering, so that colours do not flicker. Of more than MOST_FRAMES every n-th is
    taken; frames with a side over MOST_SIDE are scaled down. The file appears when whole. Raises OSError.
    """
    frames = list(frames)
    frames = frames[:: math.ceil(len(frames) / MOST_FRAMES)]
    for frame in frames:
        frame.thumbnail((MOST_SIDE, MOST_SIDE))
    mosaic = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames]))
    palette = mosaic.quantize(256)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    with helper.replacing(path) as temporary:
        first.save(temporary, 'GIF', save_all=True, append_images=others, duration=duration, loop=0, optimize=False)
