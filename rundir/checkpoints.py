"""The checkpoints of a run: saved, found, checked, deleted.

    step-N    the last few
    keep-N    one every few epochs, never deleted
    best-N    the one whose samples were nearest to held-out faces

Checkpoints are addressed by TensorFlow's prefix, checkpoints/step-N. One is complete when its .index file exists.
"""

import csv
import math
import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from common import cli
from config.settings import NEWEST
from graph.session import tf

MAX_STEP_CHECKPOINTS = 3  # step-N checkpoints that are kept


class Checkpoint(NamedTuple):
    """A checkpoint of a run: the step it was saved after, and its prefix."""

    step: int
    prefix: Path

    def files(self) -> list[Path]:
        """Its files, the index first."""
        return sorted(self.prefix.parent.glob(f'{self.prefix.name}.*'), reverse=True)


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


def find(path: Path) -> tuple[Path, Checkpoint]:
    """The run directory and the checkpoint at `path`: a checkpoint, or the best or else newest one of a run.

    Raises UserError.
    """
    path = path.absolute()
    if path.is_dir():
        checkpoints = find_all(path)
        if not checkpoints:
            raise cli.UserError(f'{path} has no checkpoint')
        return path, find_best(path) or checkpoints[-1]
    run_dir, prefix = path.parent.parent, path.with_suffix('') if path.suffix == '.index' else path
    for checkpoint in find_all(run_dir):
        if checkpoint.prefix == prefix:
            return run_dir, checkpoint
    raise cli.UserError(f'{path}: no such run directory or checkpoint')


def is_intact(checkpoint: Checkpoint) -> bool:
    """Whether every tensor of a checkpoint can be read. TensorFlow compares checksums as it reads."""
    try:
        saved = tf.train.NewCheckpointReader(os.fsencode(checkpoint.prefix))
        for name in saved.get_variable_to_shape_map():
            saved.get_tensor(name)
    except Exception:  # OpError, IndexError, ValueError and others, if the file is damaged
        return False
    return True


def find_to_resume(run_dir: Path, step: float) -> Checkpoint | None:
    """The newest intact checkpoint of a run, or the one of `step`; None if the run has none at all.

    Raises UserError if all are damaged, or none is of that step.
    """
    checkpoints = find_all(run_dir)
    wanted = [checkpoint for checkpoint in checkpoints if step in (NEWEST, checkpoint.step)]
    for checkpoint in reversed(wanted):
        if is_intact(checkpoint):
            return checkpoint
        fallback = ', falling back to the previous checkpoint' if checkpoint != wanted[0] else ''
        print(f'{checkpoint.prefix} is damaged{fallback}')
    if step != NEWEST and not wanted:
        steps = ', '.join(str(checkpoint.step) for checkpoint in checkpoints) or 'none'
        raise cli.UserError(f'{run_dir} has no checkpoint of step {step}, only of {steps}')
    if wanted:
        raise cli.UserError(f'{run_dir} has no intact checkpoint' + ('' if step == NEWEST else f' of step {step}'))
    print(f'{run_dir} has no checkpoint yet: starting from the beginning')
    return None


def save(session, saver, run_dir: Path, kind: str, step: int, healthy: int) -> None:
    """Save all variables as checkpoints/KIND-STEP, and delete old checkpoints; healthy: see `delete_old`.

    Raises UserError if the checkpoint cannot be written.
    """
    prefix = run_dir / 'checkpoints' / f'{kind}-{step}'
    try:
        write(session, saver, prefix)
    except tf.errors.OpError:  # whose message would begin with a stack of operations
        delete_unfinished(run_dir)
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
    prefix = checkpoint.prefix
    try:
        session.run(saver.saver_def.restore_op_name, {saver.saver_def.filename_tensor_name: os.fsencode(prefix)})
    except tf.errors.OpError:
        raise cli.UserError(f'{prefix} is damaged, or not a checkpoint of this run') from None


def delete_unfinished(run_dir: Path) -> None:
    """Delete the unfinished checkpoints that a killed process or a full disk left."""
    for path in run_dir.glob('checkpoints/*'):
        prefix, data, _ = path.name.partition('.data-')
        if '.tempstate' in path.name or (data and not path.with_name(f'{prefix}.index').exists()):
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
    return sorted(path for path in run_dir.glob('samples/*.png') if re.fullmatch(r'step-\d{8,}', path.stem))


def find_later_files(run_dir: Path, step: int) -> list[Path]:
    """The files of checkpoints and grids of steps after `step`."""
    saved = [path for found in find_all(run_dir) if found.step > step for path in found.files()]
    return saved + [path for path in find_grids(run_dir) if int(path.stem.removeprefix('step-')) > step]


def advice_to_go_back(run_dir: Path, healthy: int) -> str:
    """The command that returns to the newest checkpoint up to step `healthy`."""
    steps = [found.step for found in find_all(run_dir) if found.step <= healthy]
    if not steps:
        return 'there is no earlier checkpoint: restart with a lower --learning-rate or another --seed'
    return f'to return to step {steps[-1]}: python train.py --resume {steps[-1]} --run-dir {shlex.quote(str(run_dir))}'
