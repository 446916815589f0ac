"""What of a data set is trained on, and what is held out to compare generated images with."""

from pathlib import Path

import numpy as np

from dataset import DataError

IDENTITIES = 'identity_CelebA.txt'  # the official table of who is on which image
HOLD_OUT = 10  # one image, or person, in ten is held out
HOLD_OUTS = {
    'none': 'as in the article',
    'images': 'every tenth image; the same people may be on both sides',
    'people': 'every tenth person, with all images',
}


def load_people(table: Path, names: list[str]) -> list[str]:
    """Who is on each of the images `names`, from a table like CelebA's, with lines like "000001.jpg 2880".

    Raises DataError if the table lacks one of them, and OSError if it cannot be read.
    """
    try:
        lines = (line.split() for line in table.read_text(errors='replace').splitlines())
        people = {line[0]: line[1] for line in lines if len(line) == 2}
        return [people[Path(name).name] for name in names]
    except FileNotFoundError:
        raise DataError(f'{table} is missing, so people cannot be held out: put it there, or hold out images') from None
    except KeyError as error:
        raise DataError(
            f'{table} does not say who is on {error}, so people cannot be held out: hold out images'
        ) from None


def split(count: int, hold_out: str, people: list[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the images to train on, and of those held out, of `count` in all.

    hold_out: one of HOLD_OUTS. people: who is on each image, if people are held out.
    """
    groups = np.arange(count)
    if people is not None:
        groups = np.unique(np.array(people), return_inverse=True)[1]
    held_out = (groups % HOLD_OUT == HOLD_OUT - 1) & (hold_out != 'none')
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
