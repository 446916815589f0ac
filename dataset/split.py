"""Training / held-out split."""

import numpy as np

HOLD_OUT = 10  # one image, or person, in ten is held out
HOLD_OUTS = {
    'none': 'as in the article',
    'images': 'every tenth image; the same people may be on both sides',
    'people': 'every tenth person, with all images',
}


def split(count: int, hold_out: str, people: list[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the training images and of the held-out images, of `count` images.

    hold_out: one of HOLD_OUTS. people: who is on each image, if people are held out.
    """
    # Number the images, or the people, and hold out every tenth number.
    groups = np.arange(count)
    if people is not None:
        groups = np.unique(np.array(people), return_inverse=True)[1]
    held_out = (groups % HOLD_OUT == HOLD_OUT - 1) & (hold_out != 'none')
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
