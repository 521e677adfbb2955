import logging
from pathlib import Path

import pytest
from huggingface_hub import constants

from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.hub.names import resolve


@pytest.mark.parametrize(
    ('name', 'meaning'),
    [
        ('resnet18', 'resnet18'),
        ('resnet18.a1_in1k', 'resnet18.a1_in1k'),
        ('./resnet18', 'local-dir:./resnet18'),
        ('demo', 'local-dir:demo'),
        ('runs/demo', 'local-dir:runs/demo'),  # is also spelled like ORG/NAME
        ('a:b', 'local-dir:a:b'),
        ('org/name', 'hf-hub:org/name'),
        ('org/na.me-1@refs/pr/1', 'hf-hub:org/na.me-1@refs/pr/1'),
        ('local-dir:gone', 'local-dir:gone'),
        ('hf-hub:runs/demo', 'hf-hub:runs/demo'),
    ],
)
def test_resolve_tells_registered_names_folders_and_repositories_apart(name, meaning, tmp_path, monkeypatch):
    for folder in ('runs/demo', 'demo', 'resnet18', 'a:b'):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve(name) == meaning


def test_resolve_warns_of_a_folder_that_is_spelled_like_a_registered_model(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        resolve('resnet18')
        assert not caplog.messages
        (tmp_path / 'resnet18').mkdir()
        resolve('resnet18')
    assert caplog.messages == ['resnet18 is the registered model here: write ./resnet18 for the folder of that name.']


@pytest.mark.parametrize('name', ['msff_resnet11', 'a/b/c', './gone', '../gone', 'org/', '', '/gone'])
def test_resolve_refuses_other_names_with_all_possibilities(name):
    with pytest.raises(InputError, match='is no registered model, no existing folder, and no ORG/NAME on the Hub.$'):
        resolve(name)


def test_load_says_that_an_unprefixed_repository_is_no_folder(monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(InputError, match='^runs/gone: is no existing folder, and cannot be loaded from http'):
        hub.load('runs/gone')
    with pytest.raises(InputError, match='^hf-hub:runs/gone: cannot be loaded from http'):
        hub.load('hf-hub:runs/gone')


def test_load_takes_a_folder_without_a_prefix(monkeypatch):
    monkeypatch.chdir(Path(hub.__file__).parents[1])
    assert hub.load('weights/msff_test_resnet.scenes').num_classes == 12
