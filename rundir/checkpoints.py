"""The checkpoints of a run: saved, found, checked, deleted.

    step-N    the last few
    keep-N    one every few epochs, never deleted
    best-N    the one whose samples were nearest to held-out faces

Checkpoints are addressed by TensorFlow's prefix, checkpoints/step-N. One is complete when its .index file exists.
"""

import contextlib
import csv
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common import cli
from config.settings import NEWEST
from graph.session import tf
from rundir import log_csv

MAX_STEP_CHECKPOINTS = 3  # step-N checkpoints that are kept
DATA = re.compile(r'\w+-\d+\.data-\d+-of-\d+')  # name of a file with the tensors of a checkpoint
FOLDERS = 'checkpoints', 'samples'  # folders of a run directory


class Checkpoint(NamedTuple):
    """A checkpoint of a run: the step it was saved after, and its prefix."""

    step: int
    prefix: Path

    def files(self) -> list[Path]:
        """Its files, the index first."""
        return sorted(self.prefix.parent.glob(f'{self.prefix.name}.*'), reverse=True)

    def describe(self) -> dict:
        """What result files have about it."""
        return {'run': self.prefix.parent.parent.name, 'checkpoint': self.prefix.name, 'step': self.step}


def find_all(run_dir: Path, kind: str = r'\w+') -> list[Checkpoint]:
    """All checkpoints of a run, or all of one kind, the newest last."""
    folder = run_dir / 'checkpoints'
    matches = (re.fullmatch(rf'({kind}-(\d+))\.index', path.name) for path in folder.glob('*.index'))
    return sorted(Checkpoint(int(match[2]), folder / match[1]) for match in matches if match)


def find_best(run_dir: Path) -> Checkpoint | None:
    """The best-N checkpoint of a run with --evaluate-every, or None."""
    return next(reversed(find_all(run_dir, 'best')), None)


def best_distance(run_dir: Path) -> float:
    """The logged distance of the best checkpoint; infinite if there is none."""
    best = find_best(run_dir)
    with open(run_dir / 'log.csv', newline='') as file:
        distances = {row['step']: float(row['swd']) for row in csv.DictReader(file) if row['swd']}
    return distances.get(str(best.step), math.inf) if best else math.inf


def locate(path: Path) -> tuple[Path, list[Checkpoint]]:
    """The run directory and the checkpoints that `path` means, in the order in which they are tried.

    path: a run directory or one of its folders (the best checkpoint, then the others, the newest first); the prefix or
    a file of a checkpoint; or a grid of samples (the checkpoints of its step). Raises UserError if there is none.
    """
    path = path.absolute()
    # A run directory, or a folder in it.
    if path.is_dir():
        run_dir = path.parent if path.name in FOLDERS and not (path / 'checkpoints').exists() else path
        found = sorted(reversed(find_all(run_dir)), key=lambda each: not each.prefix.name.startswith('best-'))
        if not found:
            raise cli.UserError(f'{run_dir} has no checkpoint')
        return run_dir, found

    # A file of a checkpoint, or of its samples.
    run_dir, name = path.parent.parent, path.name.partition('.')[0]
    grid = re.fullmatch(r'step-(\d+)', name) if path.parent.name == 'samples' else None
    existing = find_all(run_dir)
    found = [each for each in existing if (each.step == int(grid[1]) if grid else each.prefix.name == name)]
    if not found:
        others = ', '.join(each.prefix.name for each in existing)
        hint = f'; {run_dir} has {others}' if others else ''
        raise cli.UserError(f'{path}: no such run directory or checkpoint{hint}')
    return run_dir, found


def find(path: Path) -> tuple[Path, Checkpoint, Any]:
    """The run directory at `path`, the first intact checkpoint that `path` means, and a reader of its tensors.

    path: see `locate`. The reader keeps working if a training deletes the checkpoint. Raises UserError.
    """
    run_dir, _ = locate(path)
    return run_dir, *first_intact(lambda: locate(path)[1])


def find_to_resume(run_dir: Path, step: float) -> Checkpoint | None:
    """The newest intact checkpoint of a run, or the one of `step`; None if the run has not made any step.

    Raises UserError if all are damaged or incomplete, or none is of that step.
    """
    existing = find_all(run_dir)
    wanted = [checkpoint for checkpoint in reversed(existing) if step in (NEWEST, checkpoint.step)]
    if wanted:
        checkpoint, saved = first_intact(lambda: wanted)
        if not saved.has_tensor('global_step'):
            raise cli.UserError(
                f'{run_dir} is an exported generator, which cannot be resumed: start a new run with --init-from'
            )
        return checkpoint
    if step != NEWEST:
        steps = ', '.join(str(checkpoint.step) for checkpoint in existing) or 'none'
        raise cli.UserError(f'{run_dir} has no checkpoint of step {step}, only of {steps}')

    # Perhaps not all files have been copied.
    rows, names = log_csv.read_rows(run_dir), ', '.join(path.name for path in find_without_index(run_dir))
    if rows or names:
        found = [f'step {rows[-1][0]} in log.csv'] if rows else []
        found += [f'data files without an .index file ({names})'] if names else []
        raise cli.UserError(
            f'{run_dir} has no complete checkpoint, but {" and ".join(found)}: '
            'copy the missing files of checkpoints/, or choose another --run-dir to start again'
        )
    print(f'{run_dir} has no checkpoint yet: starting from the beginning')
    return None


def first_intact(list_candidates: Callable[[], list[Checkpoint]]) -> tuple[Checkpoint, Any]:
    """The first intact one of the listed checkpoints, and a reader of its tensors. Prints which ones are damaged.

    Raises UserError if all are damaged. Lists them again after each failure: a training may have deleted some.
    """
    damaged: list[Checkpoint] = []
    while remaining := [each for each in list_candidates() if each not in damaged]:
        checkpoint, *others = remaining
        if saved := open_intact(checkpoint):
            return checkpoint, saved
        if checkpoint in list_candidates():
            damaged.append(checkpoint)
            if others:
                print(f'{checkpoint.prefix} is damaged, falling back to {others[0].prefix.name}')
    folder, names = damaged[0].prefix.parent, ', '.join(checkpoint.prefix.name for checkpoint in damaged)
    raise cli.UserError(f'{folder} has no intact checkpoint; damaged: {names}')


def open_intact(checkpoint: Checkpoint):
    """A reader of a checkpoint, or None unless every tensor can be read. TensorFlow compares checksums as it reads."""
    try:
        with readable(checkpoint.prefix) as prefix:
            saved = tf.train.NewCheckpointReader(prefix)
            for name in saved.get_variable_to_shape_map():
                saved.get_tensor(name)
    except Exception:  # OpError, IndexError, ValueError and others, if the file is damaged
        return None
    return saved


@contextlib.contextmanager
def readable(prefix: Path) -> Iterator[bytes]:
    """Yield a name of `prefix` that TensorFlow can read. It takes [ * ? and \\ in a path for a pattern.

    So the path leads through a descriptor of the folder; outside of Linux there is no such path.
    """
    if not os.path.isdir('/proc/self/fd'):
        yield os.fsencode(prefix)
        return
    descriptor = os.open(prefix.parent, os.O_RDONLY)
    try:
        yield os.fsencode(f'/proc/self/fd/{descriptor}/{prefix.name}')
    finally:
        os.close(descriptor)


def save(session, saver, run_dir: Path, kind: str, step: int, healthy: int) -> None:
    """Save all variables as checkpoints/KIND-STEP, and delete old checkpoints; healthy: see `delete_old`.

    Raises UserError if the checkpoint cannot be written.
    """
    prefix = run_dir / 'checkpoints' / f'{kind}-{step}'
    try:
        write(session, saver, prefix)
    except tf.errors.OpError:  # whose message would begin with a stack of operations
        for path in Checkpoint(step, prefix).files():
            path.unlink()
        raise cli.UserError(
            f'no checkpoint of step {step}: {prefix.parent} cannot be written, the disk may be full; '
            'earlier checkpoints are intact'
        ) from None
    delete_old(run_dir, healthy)


def write(session, saver, prefix: Path) -> None:
    """Write a checkpoint. Raises tf.errors.OpError.

    `saver.save` would refuse names that are not UTF-8, or that Python's locale cannot encode.
    """
    session.run(saver.saver_def.save_tensor_name, {saver.saver_def.filename_tensor_name: os.fsencode(prefix)})


def restore(session, saver, checkpoint: Checkpoint) -> None:
    """Restore all variables, as `saver.restore` does. Raises UserError."""
    definition = saver.saver_def
    try:
        with readable(checkpoint.prefix) as prefix:
            session.run(definition.restore_op_name, {definition.filename_tensor_name: prefix})
    except tf.errors.OpError:
        raise cli.UserError(f'{checkpoint.prefix} is damaged, or not a checkpoint of this run') from None


def find_without_index(run_dir: Path) -> list[Path]:
    """The data files without an index: a process was killed while saving, or the run is not copied completely."""
    paths = sorted(run_dir.glob('checkpoints/*.data-*'))
    return [path for path in paths if DATA.fullmatch(path.name) and not path.with_suffix('.index').exists()]


def delete_temporary(run_dir: Path) -> None:
    """Delete the temporary files of TensorFlow that a process killed while saving has left."""
    for path in run_dir.glob('checkpoints/*.tempstate*'):
        print(f'Deleted, unfinished: {path}')
        path.unlink()


def delete_old(run_dir: Path, healthy: int) -> None:
    """Delete all `best-` checkpoints but the newest, and all `step-` ones but the last few.

    healthy: the last step before signs of failure; the newest `step-` checkpoint up to it stays as well.
    """
    best, steps = (find_all(run_dir, kind) for kind in ('best', 'step'))
    recent = steps[-MAX_STEP_CHECKPOINTS:] + [found for found in steps if found.step <= healthy][-1:]
    for checkpoint in best[:-1] + [found for found in steps if found not in recent]:
        for path in checkpoint.files():  # the .index first, so that a half-deleted checkpoint is never found
            path.unlink()


def find_grids(run_dir: Path) -> list[Path]:
    """The grids of samples of a run, the newest last."""
    grids = [path for path in run_dir.glob('samples/*.png') if re.fullmatch(r'step-\d{8,}', path.stem)]
    return sorted(grids, key=grid_step)


def grid_step(path: Path) -> int:
    """The step of a grid of samples."""
    return int(path.stem.removeprefix('step-'))


def find_later_files(run_dir: Path, step: int) -> list[Path]:
    """The files of checkpoints and grids of steps after `step`."""
    saved = [path for found in find_all(run_dir) if found.step > step for path in found.files()]
    return saved + [path for path in find_grids(run_dir) if grid_step(path) > step]


def advice_to_go_back(run_dir: Path, healthy: int) -> str:
    """The command that returns to the newest checkpoint up to step `healthy`."""
    steps = [found.step for found in find_all(run_dir) if found.step <= healthy]
    if not steps:
        return 'there is no earlier checkpoint: restart with a lower --learning-rate or another --seed'
    return f'to return to step {steps[-1]}: python train.py --resume {steps[-1]} --run-dir {shlex.quote(str(run_dir))}'
