"""The check of the installation, and the ways to start a command."""

import subprocess
import sys

import pytest
from conftest import ROOT, assert_one_line

import common

COMMANDS = ('train.py', 'generate.py', 'evaluate.py')


@pytest.mark.parametrize('script', COMMANDS)
def test_a_python_without_the_packages_is_refused_with_the_remedy(script):
    # Without the site module, Python finds no installed packages.
    result = subprocess.run([sys.executable, '-S', ROOT / script, '--help'], capture_output=True, text=True)
    assert_one_line(result, f'{script}: error: {sys.executable} lacks tensorflow, numpy', '"make faces"', '.venv')


def test_a_python_that_is_too_old_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'version_info', (3, 9, 18))
    with pytest.raises(SystemExit, match='2'):
        common.check_installation()
    assert 'is older than 3.10: ' in capsys.readouterr().err


@pytest.mark.parametrize('options', [['-P'], ['-I']], ids=' '.join)
@pytest.mark.parametrize('script', COMMANDS)
def test_a_command_runs_through_a_link_from_any_folder_and_in_isolated_mode(tmp_path, script, options):
    (tmp_path / 'link.py').symlink_to(ROOT / script)
    options = [option for option in options if option != '-P' or sys.version_info >= (3, 11)]
    command = [sys.executable, *options, 'link.py', '--help']
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith('usage: ') and result.stderr == ''
