"""Saving to, loading from and publishing in timm's Hub format: a folder with `model.safetensors` and `config.json`."""

# Functions replace the submodules of the same name as attributes of this package.
from .load import DEFAULT_MODEL, create, load, load_backbone, load_for
from .names import list_models, resolve
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
    'resolve',
    'save',
    'set_thresholds',
]
