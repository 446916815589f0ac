"""Documentation: flags, functions, links and language."""

import re
import runpy
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from test_architecture import product_files

README = ROOT / 'README.md'
PAGES = [README, ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md']
PAGES += sorted([*ROOT.glob('docs/*.md'), *ROOT.glob('pretrained/**/README.md')])
NOTEBOOK = ROOT / 'dcgan.ipynb'
SCRIPTS = [ROOT / name for name in ('Dockerfile', 'Makefile', 'docker/entrypoint.sh', 'docs/slurm.sh')]
SCRIPTS += sorted(path for path in ROOT.glob('page/*') if not path.name.startswith('tf.'))
# Patterns that CONTRIBUTING.md advises against, with a remedy. A space matches a line break, too.
PATTERNS = {
    r'\b(that|those) of\b': 'repeat the noun',
    r'\bbeside\b': 'next to, in addition to',
    r'\bwhatever\b': 'state the invariant',
    r'\bnearly any\b|\bnearly anything\b': 'any',
    r'\bgo(es)? on\b': 'continue, resume',
    r'\bset aside\b': 'move to',
    r'\bc[ao]me to be\b': 'describe the result',
    r'\bas many times as\b|\bso many\b': 'give the number',
}


def without_code(text: str) -> str:
    """Markdown without its indented and fenced code blocks."""
    text = re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r'^ {4}.*$', '', text, flags=re.MULTILINE)


def section(text: str, heading: str) -> str:
    """The text between a heading, given with its hashes, and the next heading of any level."""
    return re.split(r'^#+ .*$', text.split(f'\n{heading}\n')[1], maxsplit=1, flags=re.MULTILINE)[0]


def anchors(page: Path) -> set[str]:
    """The fragments by which GitHub links to the headings of a page."""
    headings = re.findall(r'^#+ (.*)$', without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def test_the_page_of_flags_is_the_generated_one():
    page = runpy.run_path(str(ROOT / 'docs' / 'flags.py'))['page']()
    assert (ROOT / 'docs' / 'flags.md').read_text() == page, 'run: make flags'
    assert all(f'`{flag}`' in page for flag in ('--data', '--no-xla', '--workers', '--export', '--out'))


def test_the_functions_of_the_article_are_where_the_readme_says():
    rows = re.findall(r'^\|(.*)\|$', section(README.read_text(), '## From the article to the code'), re.MULTILINE)
    rows = [row for row in rows if '.py`' in row]
    assert rows
    for row in rows:
        functions, file, _ = row.split('|')
        code = (ROOT / file.strip(' `')).read_text()
        names = re.findall(r'`(\w+)`', functions)
        assert names, row
        for name in names:
            assert re.search(rf'^ *(def|class) {name}\b|^{name} = ', code, re.MULTILINE), name


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_points_to_a_file_and_a_heading(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', without_code(page.read_text())):
        if link.startswith(('https://', 'http://', 'mailto:')):
            continue
        path, _, fragment = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not fragment or fragment in anchors(target), link


def test_every_page_of_the_documentation_is_linked_from_the_readme():
    links = re.findall(r'\]\(([^)#\s]+)', README.read_text())
    assert set(PAGES) - {README} <= {ROOT / link for link in links}


def prose(path: Path) -> str:
    """The text of a file that a reader sees, without CONTRIBUTING.md's examples and the notebook's outputs."""
    if path == NOTEBOOK:
        return '\n'.join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    text = path.read_text()
    return text.split('\n## Language\n')[0] if path.name == 'CONTRIBUTING.md' else text


@pytest.mark.parametrize(
    'path', [*PAGES, NOTEBOOK, *SCRIPTS, *product_files()], ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_file_contains_a_pattern_that_contributing_advises_against(path):
    text = prose(path)
    found = []
    for pattern, remedy in PATTERNS.items():
        for match in re.finditer(pattern.replace(' ', r'[\s#/]+'), text, re.IGNORECASE):
            line = text.count('\n', 0, match.start()) + 1
            found.append(f'{path.relative_to(ROOT)}:{line}: "{match[0]}": {remedy}')
    assert not found, '\n'.join(found)
