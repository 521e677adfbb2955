"""Multi-scale feature fusion for multi-label image classification, as timm models.

Importing this package registers its models with `timm.create_model`. The public functions are imported when they are
first used: `msff_timm.load`, `msff_timm.predict`, ...
"""

import sys
from importlib import import_module

if sys.argv[:1] == ['-m']:  # Python has yet to find the module that it will run, e.g. msff_timm.training.train
    import msff_timm_cli.startup  # noqa: F401  must precede the import of PyTorch
from . import models as models

__version__ = '0.2.0'

# Public name: module and name in it
_PUBLIC = {
    'list_models': ('hub', 'list_models'),
    'load': ('hub', 'load'),
    'save': ('hub', 'save'),
    'push': ('hub', 'push'),
    'predict': ('inference.predict', 'predict'),
    'explain': ('inference.explain', 'explain'),
    'attention_maps': ('inference.attention', 'attention_maps'),
    'smooth_map': ('inference.attention', 'smooth_map'),
    'export': ('inference.export', 'export'),
    'evaluate': ('metrics', 'evaluate'),
    'fit_thresholds': ('thresholds', 'fit'),
    'InputError': ('errors', 'InputError'),
}

__all__ = ['__version__', *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module, attribute = _PUBLIC[name]
    value = globals()[name] = getattr(import_module(f'.{module}', __name__), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
