"""Shared by the tests of helper.py and dataset/."""

import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
from conftest import ROOT, encode

# Options for subprocess.run and Popen, for Python code that imports the project's modules.
PYTHON = {'env': os.environ | {'PYTHONPATH': str(ROOT)}, 'text': True, 'stdout': subprocess.PIPE}


def file_names(folder: Path) -> list[str]:
    """The sorted names of what a folder contains."""
    return sorted(path.name for path in folder.iterdir())


def write_archive(path: Path, good: int, bad: int = 0) -> Path:
    """Write a zip archive of `good` images of 4x4 pixels, with the values 0, 1, ..., and `bad` unreadable ones."""
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, 'w') as archive:
        for index in range(good):
            archive.writestr(f'{index:04}.png', encode(np.full((4, 4, 3), index % 256)))
        for index in range(bad):
            archive.writestr(f'bad{index}.jpg', b'\xff\xd8\xff no picture')
    return path
