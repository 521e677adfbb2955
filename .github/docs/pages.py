"""Makes the pages of the site: the READMEs of the rooms, and the API from docstrings."""

import re
from pathlib import Path, PurePosixPath

import mkdocs_gen_files

ROOT = Path(__file__).parents[2]
BLOB = 'https://github.com/msff-timm/msff-timm/blob/main'
PAGES = {
    'README.md': 'index.md',
    '.github/CONTRIBUTING.md': 'CONTRIBUTING.md',
    '.github/CHANGELOG.md': 'CHANGELOG.md',
    **{
        f'{room}/README.md': f'{room}/README.md'
        for room in (
            'msff_timm/models',
            'msff_timm/data',
            'msff_timm/inference',
            'train',
            'train/benchmarks',
            'hub_cards',
        )
    },
}
API = (
    'msff_timm.hub',
    'msff_timm.inference.predict',
    'msff_timm.inference.explain',
    'msff_timm.inference.export',
    'msff_timm.metrics',
    'msff_timm.thresholds',
    'msff_timm.results',
    'msff_timm.labels',
    'msff_timm.data',
    'msff_timm.models.msff',
)


def resolve(link: str, source: str) -> str:
    """Maps the link of a README to a page of the site, or to the file on GitHub."""
    path, _, anchor = link.partition('#')
    if not path or '://' in path:
        return link
    target = (ROOT / source).parent.joinpath(path).resolve().relative_to(ROOT).as_posix()
    anchor = anchor and f'#{anchor}'
    if target not in PAGES:
        return f'{BLOB}/{target}{anchor}'
    up = '../' * (len(PurePosixPath(PAGES[source]).parts) - 1)
    return f'{up}{PAGES[target]}{anchor}'


def convert(source: str) -> str:
    """Reads a README, with its links resolved."""
    text = (ROOT / source).read_text(encoding='utf-8')
    return re.sub(r'\]\(([^)\s]+)\)', lambda match: f']({resolve(match[1], source)})', text)


for source, page in PAGES.items():
    with mkdocs_gen_files.open(page, 'w') as file:
        file.write(convert(source))
with mkdocs_gen_files.open('api.md', 'w') as file:
    file.write('# API\n\n' + '\n'.join(f'::: {name}\n' for name in API))
