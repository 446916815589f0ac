import os
import subprocess
import sys

import pytest
from conftest import ROOT

from common.lazy import LazyModule


def test_a_module_is_loaded_at_the_first_use_of_an_attribute():
    loads = []

    def load(name):
        loads.append(name)
        return __import__(name)

    lazy = LazyModule('math', load)
    assert loads == []
    assert lazy.sqrt(4) == 2 and lazy.sqrt(9) == 3
    assert loads == ['math']


def test_a_submodule_is_loaded_under_its_whole_name():
    assert LazyModule('os.path').join('a', 'b').startswith('a')


def test_an_attribute_that_the_module_lacks_is_an_error():
    with pytest.raises(AttributeError, match='missing'):
        _ = LazyModule('math').missing


@pytest.mark.parametrize('script', ['train', 'generate', 'evaluate'])
def test_a_command_loads_no_large_library_before_it_needs_it(script):
    code = (
        f'import sys, {script}\n'
        f'try: {script}.parse_arguments()\n'
        'except SystemExit: pass\n'
        'print({"tensorflow", "matplotlib", "requests"} & set(sys.modules))\n'
    )
    result = subprocess.run([sys.executable, '-c', code, '--help'], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.splitlines()[-1] == 'set()', result.stderr


@pytest.mark.parametrize(('backend', 'kept'), [('gone', None), ('svg', 'svg'), ('module://gone', 'module://gone')])
def test_a_backend_of_matplotlib_that_is_not_installed_does_no_harm(backend, kept):
    code = (
        'import os\n'
        'from common.lazy import LazyModule, load_with_matplotlib\n'
        'figure = LazyModule("matplotlib.figure", load_with_matplotlib)\n'
        'figure.Figure().savefig(os.devnull, format="png")\n'
        'import matplotlib\n'
        'print(matplotlib.rcParams._get_backend_or_none(), os.environ["MPLBACKEND"])\n'
    )
    options = {'env': os.environ | {'MPLBACKEND': backend}, 'capture_output': True, 'text': True}
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, **options)
    assert (result.stdout, result.stderr) == (f'{kept} {backend}\n', '')
