import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from common.cli import UserError
from sampling import pictures
from sampling.pictures import (
    LABEL_HEIGHT,
    enlarge,
    evenly_spaced,
    face_name,
    find_ffmpeg,
    gif_bounds,
    label,
    save_gif,
    save_mp4,
    side_by_side,
)  # fmt: skip

RNG = np.random.default_rng(0)


def noise(side):
    return Image.fromarray(RNG.integers(0, 256, (side, side, 3), dtype=np.uint8))


# --- enlarged and labelled faces


def test_an_enlarged_pixel_is_a_square():
    face = np.asarray(noise(4))
    np.testing.assert_array_equal(enlarge(face, 3), face.repeat(3, axis=0).repeat(3, axis=1))


def test_a_caption_is_below_the_face():
    face = np.asarray(noise(28))
    labelled = label(face, '7', 3)
    assert labelled.shape == (28 * 3 + LABEL_HEIGHT, 28 * 3, 3) and labelled.dtype == np.uint8
    np.testing.assert_array_equal(labelled[: 28 * 3], enlarge(face, 3))
    caption = labelled[28 * 3 :]
    assert caption.max() > 200 and (caption == 0).mean() > 0.5
    assert (caption != label(face, '8', 3)[28 * 3 :]).any()


@pytest.mark.parametrize(
    ('count', 'last'), [(1, 'face-00000.png'), (100_000, 'face-99999.png'), (100_001, 'face-100000.png')]
)
def test_files_of_faces_sort_in_their_order(count, last):
    names = [face_name(index, count) for index in range(0, count, 10_000)]
    assert names == sorted(names) and face_name(count - 1, count) == last


def test_grey_faces_are_enlarged_and_labelled_too():
    face = np.asarray(noise(28))[..., :1]
    assert enlarge(face, 2).mode == 'L' and enlarge(face, 2).size == (56, 56)
    np.testing.assert_array_equal(label(face, '7', 1)[:28], face.repeat(3, axis=2))


def test_pictures_in_a_row_have_gaps_between_them_and_their_lower_edges_in_line():
    left, right = noise(160), noise(90)
    row = np.asarray(side_by_side([left, right.convert('L')]))
    assert row.shape == (160, 160 + LABEL_HEIGHT + 90, 3)
    np.testing.assert_array_equal(row[:, :160], left)
    np.testing.assert_array_equal(row[70:, -90:], right.convert('L').convert('RGB'))
    assert (row[:, 160:-90] == 0).all() and (row[:70, 160:] == 0).all()


# --- GIFs


@pytest.mark.parametrize(
    ('count', 'chosen'), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10)))]
)
def test_evenly_spaced_items_include_the_first_and_the_last(count, chosen):
    assert evenly_spaced(list(range(10)), count) == chosen


@pytest.mark.parametrize(
    ('size', 'bounds'),
    [((56, 28), ((56, 28), 10_699)), ((960, 240), ((480, 120), 291)), ((1, 10_000), ((1, 480), 34_952))],
)
def test_the_bounds_of_a_gif_keep_its_proportions(size, bounds):
    assert gif_bounds(*size) == bounds


def test_a_gif_loops_forever_and_rests_on_its_last_frame(tmp_path):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    save_gif([Image.new('RGB', (10, 6), colour) for colour in colours], tmp_path / 'x.gif', 100, 900)
    with Image.open(tmp_path / 'x.gif') as gif:
        assert gif.n_frames == 3 and gif.size == (10, 6) and gif.info['loop'] == 0
        for index, colour in enumerate(colours):
            gif.seek(index)
            assert gif.info['duration'] == (100, 100, 900)[index]
            assert (np.asarray(gif.convert('RGB')) == colour).all()


def test_still_parts_of_a_gif_do_not_flicker(tmp_path):
    still, frames = noise(16), []
    for _ in range(8):
        frames.append(Image.new('RGB', (32, 16)))
        frames[-1].paste(still)
        frames[-1].paste(noise(16), (16, 0))
    save_gif(frames, tmp_path / 'x.gif', 100)
    seen = []
    with Image.open(tmp_path / 'x.gif') as gif:
        for index in range(8):
            gif.seek(index)
            seen.append(np.asarray(gif.convert('RGB'))[:, :16])
    assert all((frame == seen[0]).all() for frame in seen)
    assert np.abs(seen[0].astype(int) - np.asarray(still)).mean() < 30  # 256 colours for noise


def test_large_frames_are_scaled_down_and_many_are_thinned_out_with_a_note(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, 'MAX_GIF_SIDE', 20)
    monkeypatch.setattr(pictures, 'MAX_GIF_PIXELS', 20 * 10 * 5)
    frames = [Image.new('RGB', (80, 40), (red, 0, 0)) for red in range(0, 120, 10)]
    save_gif(frames[:5], tmp_path / 'x.gif', 100)
    assert 'has 5 frames of 20x10 pixels instead of 5 frames of 80x40' in capsys.readouterr().out
    save_gif(frames, tmp_path / 'x.gif', 100)
    assert 'has 5 frames of 20x10 pixels instead of 12 frames of 80x40' in capsys.readouterr().out
    with Image.open(tmp_path / 'x.gif') as gif:
        assert gif.size == (20, 10) and gif.n_frames == 5
        assert np.asarray(gif.convert('RGB'))[0, 0, 0] == 0
        gif.seek(4)
        assert np.asarray(gif.convert('RGB'))[0, 0, 0] == 110


# --- videos


def ffmpeg_script(folder, code):
    """The path of a program that stands in for ffmpeg: Python code."""
    path = folder / 'ffmpeg'
    path.write_text(f'#!{sys.executable} -S\nimport sys\n{code}\n')
    path.chmod(0o755)
    return str(path)


def test_a_video_gets_every_frame_at_its_size(tmp_path):
    code = (
        "open(sys.argv[-1].removeprefix('file:'), 'wb').write(repr(sys.argv).encode() + b'|' + sys.stdin.buffer.read())"
    )
    frames = [noise(9), noise(9).convert('L'), noise(9)]
    save_mp4(iter(frames), tmp_path / 'a:b %d.mp4', 12.5, ffmpeg_script(tmp_path, code))
    arguments, pixels = (tmp_path / 'a:b %d.mp4').read_bytes().split(b'|', 1)
    assert b"'9x9', '-r', '12.5'" in arguments
    np.testing.assert_array_equal(
        np.frombuffer(pixels, np.uint8).reshape(3, 9, 9, 3), [np.asarray(frame.convert('RGB')) for frame in frames]
    )
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ('code', 'message'), [("sys.exit('first\\nno encoder')", 'no encoder'), ('sys.exit(3)', 'status 3')]
)
def test_a_video_that_ffmpeg_cannot_write_is_an_error_with_its_last_message(tmp_path, code, message):
    frames = (noise(200) for _ in range(10))  # more than fits into a pipe
    with pytest.raises(UserError, match=rf'x\.mp4 cannot be written, ffmpeg failed: {message}$'):
        save_mp4(frames, tmp_path / 'x.mp4', 10, ffmpeg_script(tmp_path, code))
    assert [path.name for path in tmp_path.iterdir()] == ['ffmpeg']


def test_a_video_shows_the_frames(tmp_path):
    try:
        ffmpeg = find_ffmpeg()
    except UserError:
        pytest.skip('there is no ffmpeg')
    frames = [noise(3).resize((31, 30), Image.Resampling.BICUBIC) for _ in range(7)]
    save_mp4(frames, tmp_path / 'x.mp4', 25, ffmpeg)
    command = [ffmpeg, '-loglevel', 'error', '-i', tmp_path / 'x.mp4', '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-']
    decoded = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    shown = decoded.reshape(7, 30, 32, 3)[:, :, :31].astype(int)  # padded to an even width
    assert np.abs(shown - np.array([np.asarray(frame) for frame in frames])).mean() < 8
