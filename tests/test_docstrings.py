"""Examples in docstrings: each one runs, and everything in the API reference has one."""

import ast
import doctest
import inspect
from importlib import import_module
from pathlib import Path

import datasets
import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / 'msff_timm').rglob('*.py') if '>>> ' in path.read_text(encoding='utf-8'))
MODULES = ['.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__') for path in FILES]


def reference() -> dict[str, tuple[str, ...]]:
    """Reads the names in the API reference by module, without the packages that build the site."""
    tree = ast.parse((ROOT / '.github' / 'docs' / 'pages.py').read_text(encoding='utf-8'))
    (api,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == 'API']
    return ast.literal_eval(api)


@pytest.mark.parametrize('name', MODULES)
def test_docstrings_have_examples_that_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    results = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.attempted and not results.failed


@pytest.mark.parametrize('module, names', reference().items(), ids=list(reference()))
def test_docstrings_of_the_reference_have_examples(module, names):
    for name in names:
        thing = getattr(import_module(module), name)
        assert '>>> ' in inspect.getdoc(thing) and 'SKIP' not in inspect.getdoc(thing), name
