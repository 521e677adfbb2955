"""The public names of the package."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import msff_timm
from msff_timm import errors, hub, metrics, thresholds
from msff_timm.inference.attention import attention_maps
from msff_timm.inference.predict import predict


def test_public_names_are_those_of_their_modules():
    for name in msff_timm.__all__:
        assert getattr(msff_timm, name) is not None and name in dir(msff_timm)
    assert msff_timm.load is hub.load and msff_timm.predict is predict and msff_timm.attention_maps is attention_maps
    assert msff_timm.evaluate is metrics.evaluate and msff_timm.fit_thresholds is thresholds.fit
    assert msff_timm.InputError is errors.InputError


def test_version_is_that_of_the_changelog_and_the_space():
    root = Path(__file__).parents[1]
    changelog = (root / '.github' / 'CHANGELOG.md').read_text(encoding='utf-8')
    assert re.search(r'^## (\S+)', changelog, flags=re.MULTILINE)[1] == msff_timm.__version__
    assert f'/msff_timm-{msff_timm.__version__}-py3' in (root / 'hub_cards' / 'space' / 'requirements.txt').read_text()


def test_public_names_are_no_submodules():
    folder = Path(msff_timm.__file__).parent
    assert not {path.stem for path in folder.iterdir()} & {*msff_timm.__all__}


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'msff_timm' has no attribute 'nothing'"):
        _ = msff_timm.nothing
    assert not hasattr(msff_timm, 'nothing')


def test_import_loads_public_functions_when_they_are_used():
    code = 'import sys, msff_timm; heavy = {"msff_timm.hub", "msff_timm.inference.predict"};'
    code += 'assert not heavy & set(sys.modules), heavy & set(sys.modules); from msff_timm import predict;'
    code += 'assert predict.__module__ == "msff_timm.inference.predict"'
    subprocess.run([sys.executable, '-c', code], check=True)
