"""Shared by all commands: arguments, errors, files, progress bars. Importing it first checks the installation."""

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent  # the project
PACKAGES = ('tensorflow', 'numpy', 'matplotlib', 'requests', 'PIL', 'tqdm')  # modules of requirements.txt


def check_installation() -> None:
    """End the program with one line and status 2 if Python is too old, or if a package is missing."""
    missing = [name for name in PACKAGES if not importlib.util.find_spec(name)]
    if sys.version_info >= (3, 10) and not missing:
        return
    problem = f'lacks {", ".join(missing)}' if missing else 'is older than 3.10'
    print(
        f'{Path(sys.argv[0]).name}: error: {sys.executable} {problem}: run "make faces" in {FOLDER} and use '
        f'.venv/bin/python there, or run "pip install -r requirements.txt" with Python 3.10 to 3.13',
        file=sys.stderr,
    )
    sys.exit(2)


check_installation()
