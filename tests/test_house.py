"""The arrows of the blueprint: what may import what."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / 'msff_timm').rglob('*.py'))
TRAIN = {path.stem for path in (ROOT / 'train').glob('*.py')}


def imports(path: Path) -> set[str]:
    """Names the modules that a file imports, relative ones in full."""
    package = path.relative_to(ROOT).with_suffix('').parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[: len(package) - node.level + 1]) if node.level else ''
            found.add('.'.join(part for part in (base, node.module) if part))
    return found


def test_relative_imports_are_resolved():
    assert 'msff_timm.layers' in imports(ROOT / 'msff_timm' / 'msff.py')
    assert 'msff_timm.errors' in imports(ROOT / 'msff_timm' / 'data' / 'coco.py')


@pytest.mark.parametrize('path', PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_imports_nothing_from_above(path):
    roots = {name.partition('.')[0] for name in imports(path)}
    assert not roots & {'train', 'accelerate', 'hub_cards', 'jsonargparse', *TRAIN}


@pytest.mark.parametrize(
    'path', [p for p in PACKAGE if 'layers' in p.parts or p.stem == 'metrics'], ids=lambda p: p.name
)
def test_layers_and_metrics_import_nothing_from_the_rest(path):
    ours = {name for name in imports(path) if name.startswith('msff_timm')}
    assert all(name.startswith('msff_timm.layers') for name in ours) and (path.stem != 'metrics' or not ours)
