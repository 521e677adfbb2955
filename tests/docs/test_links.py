"""Links of the READMEs, the pages of the site and the card template lead to files and headings of this checkout."""

import json
import re
from pathlib import Path

import pytest

from msff_timm.hub.card import RUN_IMAGES

ROOT = Path(__file__).parents[2]
BLOB = 'https://github.com/msff-timm/msff-timm/blob/main/'
RAW = 'https://raw.githubusercontent.com/msff-timm/msff-timm/main/'
LINK = re.compile(r'\]\(([^)\s]+)\)|(?:href|src)="([^"]+)"')
PAGES = [
    *(path for room in ('msff_timm', 'train', 'hub_cards') for path in sorted((ROOT / room).rglob('*.md'))),
    *sorted((ROOT / '.github').rglob('*.md')),
    *sorted((ROOT / '.github').rglob('*.ipynb')),
    ROOT / 'README.md',
]


def read(page: Path) -> str:
    """Reads a page, or the text of a notebook."""
    text = page.read_text(encoding='utf-8')
    if page.suffix == '.ipynb':
        text = '\n'.join(
            ''.join(cell['source']) for cell in json.loads(text)['cells'] if cell['cell_type'] == 'markdown'
        )
    return text


def links(page: Path) -> list[str]:
    return [first or second for first, second in LINK.findall(read(page))]


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r'^```.*?^```', '', read(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r'^#+ (.+)$', text, flags=re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def problem(link: str, page: Path) -> str | None:
    """Returns what is wrong with a link; None if nothing is, or if it leads elsewhere."""
    path, _, anchor = link.partition('#')
    for base in (BLOB, RAW):
        if path.startswith(base):
            target = ROOT / path.removeprefix(base)
            break
    else:
        if '://' in path or '{{' in path:
            return None
        target = page.parent / path if path else page
    if page.name == 'template.md' and path in RUN_IMAGES:  # beside the card of a run
        return None
    if not target.exists():
        return f'{link}: no such file'
    if anchor and anchor not in anchors(target):
        return f'{link}: no such heading'
    return None


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    assert [found for link in links(page) if (found := problem(link, page))] == []


def test_links_of_pages_are_found():
    assert sum(len(links(page)) for page in PAGES) > 100
    assert 'your-own-labels' in anchors(ROOT / 'train' / 'README.md')


@pytest.mark.parametrize('link', ['gone.md', '#gone', f'{BLOB}gone.md', f'{RAW}gone.png', 'train/README.md#gone'])
def test_problem_names_links_that_lead_nowhere(link):
    assert problem(link, ROOT / 'README.md').startswith(link)


def test_links_of_the_first_page_work_on_pypi():
    assert [link for link in links(ROOT / 'README.md') if not link.startswith('https://')] == []


def test_urls_of_the_project_lead_to_files():
    found = re.findall(re.escape(BLOB) + r'([^"#]+)', (ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
    assert found and all((ROOT / path).exists() for path in found)


def test_comparison_has_a_source_for_each_footnote():
    text = (ROOT / '.github' / 'docs' / 'comparison.md').read_text(encoding='utf-8')
    defined = re.findall(r'^\[\^(\w+)\]: \S', text, flags=re.MULTILINE)
    used = re.findall(r'\[\^(\w+)\](?!:)', text)
    assert len(defined) == len(set(defined)) and set(defined) == set(used)
