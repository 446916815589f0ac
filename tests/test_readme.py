import re

import pytest
from conftest import ROOT, run_command

README = (ROOT / 'README.md').read_text()


@pytest.mark.parametrize('script', ['train.py', 'generate.py', 'evaluate.py'])
def test_every_flag_is_in_the_readme_and_no_other(tmp_path, script):
    flags = set(re.findall(r'--[a-z][a-z0-9-]+', run_command(script, '--help', cwd=tmp_path).stdout)) - {'--help'}
    table = README.split(f'| `{script}` |')[1].split('\n\n')[0]
    assert set(re.findall(r'^\| `(--[a-z0-9-]+)`', table, re.MULTILINE)) == flags


def test_functions_the_readme_names_are_where_it_says():
    table = README.split('## From the article to the code')[1].split('\n\n')[1]
    for row in table.splitlines()[2:]:
        article, here = row.strip('| ').split(' | ')
        files = re.findall(r'`(\w+\.py)`', here)
        code = ''.join((ROOT / file).read_text() for file in files)
        for name in re.findall(r'`(\w+)`', article if here.startswith('the same') else here):
            assert f'def {name}(' in code, name
