"""Saving to, loading from and publishing in timm's Hub format: a folder with `model.safetensors` and `config.json`."""

# Functions replace the submodules of the same name as attributes of this package.
from .load import DEFAULT_MODEL, create, list_models, load, load_backbone, load_for
from .push import Push, push
from .save import save, set_thresholds

__all__ = [
    'DEFAULT_MODEL',
    'Push',
    'create',
    'list_models',
    'load',
    'load_backbone',
    'load_for',
    'push',
    'save',
    'set_thresholds',
]
