"""log.csv: one row for each step of a run."""

import csv
from pathlib import Path

from common import files

LOG_COLUMNS = ('step', 'epoch', 'd_loss', 'g_loss', 'd_real', 'd_fake', 'images_per_second', 'swd')


def read_rows(run_dir: Path) -> list[list[str]]:
    """The complete rows of log.csv, without the head: a crash can leave others."""
    path = run_dir / 'log.csv'
    if not path.exists():
        return []
    with open(path, newline='', errors='replace') as file:
        return [row for row in csv.reader(file) if len(row) == len(LOG_COLUMNS) and row[0].isdecimal()]


def write_rows(folder: Path, rows: list[list[str]]) -> None:
    """Write a log.csv with these rows into `folder`."""
    with files.replacing(folder / 'log.csv') as temporary, open(temporary, 'w', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows([LOG_COLUMNS, *rows])
