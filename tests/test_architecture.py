"""The house: which files there are, and which of them may import which."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

# From the ground up: a module imports only modules of its own line and of lines above it in this list.
LAYERS = [
    {'common'},
    {'systems'},
    {'dataset'},
    {'graph'},
    {'config'},
    {'rundir'},
    {'dcgan'},
    {'helper'},
    {'metrics'},
    {'sampling'},
    {'export'},
    {'distributed'},
    {'training'},
    {'train', 'generate', 'evaluate'},
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
FORBIDDEN = {  # within the layers above
    'helper': {'graph', 'config', 'rundir', 'dcgan', 'systems'},
    'dcgan': {'config', 'rundir', 'dataset'},
    'dataset': {'systems'},
    'distributed': {'config', 'rundir', 'sampling', 'metrics', 'helper', 'dcgan', 'dataset', 'systems'},
    'train': {'generate', 'evaluate'},
    'generate': {'train', 'evaluate'},
    'evaluate': {'train', 'generate'},
}
COMMANDS = ('train.py', 'generate.py', 'evaluate.py')


def product_files():
    """The project's own modules, without tests and benchmarks."""
    folders = [folder for names in LAYERS for folder in names if (ROOT / folder).is_dir()]
    return sorted([*ROOT.glob('*.py'), *(path for folder in folders for path in (ROOT / folder).rglob('*.py'))])


def imports(path):
    """Yield the top-level names of the modules that a file imports, with the line, and whether in a function."""
    tree = ast.parse(path.read_text())
    inside = {
        node for function in ast.walk(tree) if isinstance(function, (ast.FunctionDef, ast.ClassDef))
        for node in ast.walk(function)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, node in inside
        elif isinstance(node, ast.ImportFrom):
            yield node.module, node.lineno, node in inside


def test_the_articles_files_and_the_commands_are_the_only_ones_at_the_top():
    names = {path.name for path in ROOT.glob('*.py')}
    assert names == {'systems.py', 'helper.py', 'dcgan.py', 'train.py', 'generate.py', 'evaluate.py'}
    assert {path.parent.name for path in ROOT.glob('*/__init__.py')} | {name[:-3] for name in names} == set(LEVELS)


def test_the_docker_image_gets_every_package_and_what_they_read():
    folders = {f'!{path.parent.name}' for path in ROOT.glob('*/__init__.py')} | {'!page', '!pretrained'}
    assert folders <= set((ROOT / '.dockerignore').read_text().splitlines())


@pytest.mark.parametrize('path', product_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way_and_stand_at_the_top(path):
    own = path.relative_to(ROOT).parts[0].removesuffix('.py')
    for module, line, inside in imports(path):
        assert not inside, f'{path.name}:{line} imports {module} in a function'
        name = module.split('.')[0]
        assert name != 'tensorflow' or path == ROOT / 'graph' / 'session.py', f'{path.name}:{line}'
        if name in LEVELS and name != own:
            assert LEVELS[name] < LEVELS[own] and name not in FORBIDDEN.get(own, ()), f'{own} imports {module}'


@pytest.mark.parametrize('command', COMMANDS)
def test_help_loads_no_slow_module(command, tmp_path):
    code = (
        'import runpy, sys\n'
        'try:\n    runpy.run_path(sys.argv[1], run_name="__main__")\n'
        'except SystemExit:\n'
        '    print(*sorted({"tensorflow", "matplotlib", "requests"} & set(sys.modules)), file=sys.stderr)\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code, str(ROOT / command), '--help'],
        cwd=tmp_path, env={'PYTHONPATH': str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0 and 'usage:' in result.stdout and result.stderr.strip() == ''
