"""The documentation keeps pace with the code."""

import re
import runpy
from pathlib import Path

import pytest
from conftest import ROOT

README = ROOT / 'README.md'
PAGES = [README, ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md']
PAGES += sorted([*ROOT.glob('docs/*.md'), *ROOT.glob('pretrained/**/README.md')])


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
        article, here, file = row.split('|')
        code = (ROOT / file.strip(' `')).read_text()
        names = re.findall(r'`(\w+)`', article if 'the same' in here else here)
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
