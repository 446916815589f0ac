"""Pictures of faces: enlarged, labelled, animated."""

import contextlib
import importlib
import itertools
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

import helper
from common.cli import UserError
from common.files import replacing

LABEL_HEIGHT, MAX_GIF_SIDE = 14, 480  # pixels
MAX_GIF_PIXELS = 1 << 24  # total over all frames: a GIF of noise then has 23 MB
PALETTE_FRAMES = 16  # frames from which the palette is computed


def enlarge(face: np.ndarray, scale: int) -> Image.Image:
    """`face` (H, W, C) with each pixel enlarged to `scale` x `scale`."""
    return ImageOps.scale(helper.to_image(face), scale, Image.Resampling.NEAREST)


def face_name(index: int, count: int, kind: str = 'face') -> str:
    """The file name of one of `count` faces: face-00000.png. All have the same length, so that they sort in order."""
    return f'{kind}-{index:0{max(5, len(str(count - 1)))}}.png'


def save_faces(faces: Iterable[np.ndarray], count: int, scale: int, folder: Path, kind: str = 'face') -> Path:
    """Save `count` enlarged faces in a new folder while they are drawn. Returns the pattern of their paths."""
    folder.mkdir()
    for index, face in enumerate(faces):
        enlarge(face, scale).save(folder / face_name(index, count, kind))
    return folder / f'{kind}-*.png'


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

    Prints a note if it was scaled down or thinned out.
    duration, last: milliseconds for which each frame, or the last one, is shown.
    """
    (width, height), max_frames = gif_bounds(*frames[0].size)
    shown = [frame.resize((width, height), Image.Resampling.BOX) for frame in evenly_spaced(frames, max_frames)]
    if len(shown) < len(frames) or shown[0].size != frames[0].size:
        whole = f'{len(frames)} frames of {frames[0].width}x{frames[0].height}'
        print(f'Note: {path} has {len(shown)} frames of {width}x{height} pixels instead of {whole}')

    # All frames share a palette and are not dithered, so that still colours do not flicker.
    palette = Image.fromarray(np.concatenate(evenly_spaced(shown, PALETTE_FRAMES))).quantize()
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in shown)
    durations = [duration] * len(others) + [last or duration]
    with replacing(path) as temporary:
        first.save(temporary, 'GIF', save_all=True, append_images=others, duration=durations, loop=0, optimize=False)


def find_ffmpeg() -> str:
    """The path of the program ffmpeg: the one on PATH, or else of the package imageio-ffmpeg. Raises UserError."""
    if found := shutil.which('ffmpeg'):
        return found
    try:
        return importlib.import_module('imageio_ffmpeg').get_ffmpeg_exe()
    except Exception:  # not installed, or without a program for this system
        raise UserError('--format mp4 requires ffmpeg: pip install imageio-ffmpeg') from None


def save_mp4(frames: Iterable[Image.Image], path: Path, fps: float, ffmpeg: str) -> None:
    """Save frames of one size as an MP4 video while they are drawn. ffmpeg: see `find_ffmpeg`. Raises UserError."""
    frames = iter(frames)
    first = next(frames)
    with replacing(path) as temporary, tempfile.TemporaryFile() as log:
        # ffmpeg reads pixels from a pipe. The subsampled colours that all players show require even sides.
        source = ['-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', f'{first.width}x{first.height}', '-r', str(fps)]
        target = ['-vf', 'pad=ceil(iw/2)*2:ceil(ih/2)*2', '-pix_fmt', 'yuv420p', '-crf', '12']
        command = [ffmpeg, '-loglevel', 'error', '-y', *source, '-i', '-', *target, f'file:{temporary.absolute()}']
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        with contextlib.suppress(BrokenPipeError), process:  # the pipe breaks if ffmpeg ends early
            assert process.stdin
            for frame in itertools.chain([first], frames):
                process.stdin.write(frame.convert('RGB').tobytes())

        # Report its last message if it failed.
        if process.returncode:
            log.seek(0)
            message = log.read().decode(errors='replace').strip().splitlines() or [f'status {process.returncode}']
            raise UserError(f'{path} cannot be written, ffmpeg failed: {message[-1]}')
