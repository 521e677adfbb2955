"""The arrows of the blueprint: what may import what."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / 'msff_timm').rglob('*.py'))
# What each room may import of the package; the command and training may import all.
ALLOWED = {
    'models': ('models', 'labels', 'errors'),
    'metrics': (),
    'data': ('data', 'labels', 'errors', 'files'),
}


def imports(path: Path) -> set[str]:
    """Names the modules that a file imports, relative ones in full, `from . import a` as the module a."""
    package = path.relative_to(ROOT).with_suffix('').parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[: len(package) - node.level + 1]) if node.level else ''
            whole = '.'.join(part for part in (base, node.module) if part)
            found |= {f'{whole}.{alias.name}' for alias in node.names}
    return found


def room(path: Path) -> str:
    """Names the first folder of a file within the package, or the file."""
    return path.relative_to(ROOT / 'msff_timm').with_suffix('').parts[0]


def test_imports_resolves_relative_ones():
    assert 'msff_timm.models.layers.ClassWiseLinear' in imports(ROOT / 'msff_timm' / 'models' / 'msff.py')
    assert 'msff_timm.errors.InputError' in imports(ROOT / 'msff_timm' / 'data' / 'coco.py')


@pytest.mark.parametrize('path', PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_lies_below_them(path):
    found = imports(path)
    roots = {name.partition('.')[0] for name in found}
    assert not roots & {'train', 'hub_cards', 'tests', 'benchmark', 'pointing', 'photos'}
    if room(path) != 'training':
        assert not roots & {'accelerate', 'jsonargparse'}
    if room(path) in ALLOWED:
        ours = {name.split('.')[1] for name in found if name.startswith('msff_timm.')}
        if path.name == 'base.py':
            ours.discard('hub')  # imported by the call that fetches weights
        assert ours <= set(ALLOWED[room(path)]), ours


def test_the_command_imports_nothing_heavy_before_it_is_needed():
    assert imports(ROOT / 'msff_timm' / 'cli' / 'startup.py') <= {
        'ctypes', 'os', 'sys', 'contextlib.suppress', 'types.TracebackType'
    }  # fmt: skip
