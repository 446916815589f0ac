import numpy as np
import pytest
from conftest import run_command
from PIL import Image

from common import cli
from rundir.checkpoints import find_grids
from training.curves import MAX_POINTS, Curve, plot_losses, training_gif

RNG = np.random.default_rng(0)


# --- curves


def curve(points):
    curve = Curve()
    for point in points:
        curve.add(*point)
    return curve


@pytest.mark.parametrize('count', [1, 399, 400, 401, 1000, 12345])
def test_a_curve_of_any_length_has_few_points_each_a_mean_over_as_many(count):
    points = RNG.random((count, 3))
    thinned = curve(points)
    window = thinned.window
    assert len(thinned.points) == count // window < 2 * MAX_POINTS
    assert window == 1 if count < 2 * MAX_POINTS else len(thinned.points) >= MAX_POINTS
    means = points[: count // window * window].reshape(-1, window, 3).mean(axis=1)
    np.testing.assert_allclose(thinned.points, means)


@pytest.mark.parametrize(
    ('steps', 'evaluated', 'width'), [(1, [], 1000), (1, [1], 1500), (9, [], 1000), (999, [500], 1500)]
)
def test_distances_have_a_panel_of_their_own_beside_the_losses_and_scores(tmp_path, steps, evaluated, width):
    losses = curve((step, 1.3, 0.7, 0.6, 0.4) for step in range(1, steps + 1))
    plot_losses(losses, curve((step, 2.5) for step in evaluated), tmp_path / 'losses.png')
    with Image.open(tmp_path / 'losses.png') as plot:
        assert plot.size == (width, 400) and np.asarray(plot.convert('L')).std() > 1


# --- the GIF of the training


def test_the_training_gif_has_the_grids_of_the_run_in_order(trained, tmp_path):
    before = (trained / 'training.gif').read_bytes()
    result = run_command('train.py', '--gif', '--run-dir', trained, cwd=tmp_path)
    assert result.returncode == 0 and str(trained / 'training.gif') in result.stdout and result.stderr == ''
    assert (trained / 'training.gif').read_bytes() == before
    grids = [np.asarray(Image.open(path)).astype(int) for path in find_grids(trained)]
    assert len(grids) == 4
    with Image.open(trained / 'training.gif') as gif:
        assert gif.n_frames == len(grids)
        for index, grid in enumerate(grids):
            gif.seek(index)
            assert np.abs(np.asarray(gif.convert('RGB')) - grid).mean() < 15


def test_without_grids_there_is_an_error_and_no_gif(tmp_path):
    with pytest.raises(cli.UserError, match=f'{tmp_path} has no grids'):
        training_gif(tmp_path)
    assert list(tmp_path.iterdir()) == []
