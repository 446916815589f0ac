"""The notebook: what is stored of it, and that it runs from top to bottom."""

import re
from copy import deepcopy

import nbformat
from conftest import ROOT
from nbclient import NotebookClient

PATH = ROOT / 'dcgan.ipynb'
NOTEBOOK = nbformat.read(PATH, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == 'code']
MAX_BYTES = 1_500_000
SECTIONS = [
    'Introduction', 'Data', 'Inputs', 'Discriminator', 'Generator', 'Losses', 'Optimisers', 'Training', 'Ten faces',
    'Interpolation', 'Next steps',
]  # fmt: skip
INTERRUPTED = """
import signal
shown, pending = show_faces, [signal.SIGINT]
show_faces = lambda faces: pending and signal.raise_signal(pending.pop())
{}
show_faces = shown
"""
FEW_STEPS = """
from sampling import demo
demo.DEMO_FACES = 50
FLAGS = ['--data', 'demo', '--steps', '4', '--sample-every', '2', '--width', '0.0625']
"""


def kinds(cell):
    """What kinds of output a cell has: text, pictures, formatted text."""
    return {kind for output in cell.outputs for kind in output.get('data', [output.output_type])}


def test_the_notebook_follows_the_article():
    markdown = '\n'.join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == 'markdown')
    assert re.findall('^## (.*)$', markdown, re.MULTILINE) == SECTIONS


def test_the_notebook_is_stored_as_it_was_executed_from_top_to_bottom_and_small():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    assert all('error' not in kinds(cell) for cell in CODE)
    assert PATH.stat().st_size < MAX_BYTES


def test_the_notebook_runs_and_shows_what_is_stored(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    notebook = deepcopy(NOTEBOOK)
    (parameters,) = [cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ())]
    parameters.source = FEW_STEPS
    # The training cell is interrupted after the grid of step 0, and run again.
    (training,) = [index for index, cell in enumerate(notebook.cells) if 'on_samples=' in cell.source]
    notebook.cells.insert(training, nbformat.v4.new_code_cell(INTERRUPTED.format(notebook.cells[training].source)))
    NotebookClient(notebook, timeout=300, resources={'metadata': {'path': tmp_path}}).execute()
    del notebook.cells[training]
    executed = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [kinds(cell) for cell in executed] == [kinds(cell) for cell in CODE]
    assert {path.name for path in tmp_path.iterdir()} == {'data', 'runs'}
    pictures = [output for cell in executed for output in cell.outputs if 'image/png' in output.get('data', ())]
    # real faces, grids of steps 2 and 4, the curves, faces of both generators, a walk
    assert len(pictures) == 7
    assert sorted(path.name for path in tmp_path.glob('runs/*/samples/step-*.png')) == [
        f'step-{step:08}.png' for step in (0, 1, 2, 4)
    ]
