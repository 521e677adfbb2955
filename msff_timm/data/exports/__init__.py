"""Data sets as annotation tools export them, and how the format of a folder is recognised.

Each module reads one format with two functions:

- `recognise(root: Path) -> str | None` returns the evidence that a folder or a file is of this format, as a short
  phrase that follows "by" (e.g. `train/_annotations.coco.json`), or None. It looks at names (`tree.read_tree`) and at
  the heads of few files, and decodes no image.
- `load(split, root, *, ...) -> Dataset` loads one split. Its keyword-only arguments are the settings of
  `msff_timm.data.load` that it uses, by the same names.
"""

from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError

if TYPE_CHECKING:
    import datasets

__all__ = ['FORMATS', 'load']

# Module of each format, by its name in `data.name`
FORMATS: dict[str, str] = {
    'cvat': 'cvat',
    'folders': 'class_folders',
    'label_studio': 'label_studio',
    'roboflow': 'roboflow_classes',
    'webdataset': 'webdataset',
}


def load(name: str, split: str, root: str | None, **settings: object) -> 'datasets.Dataset | datasets.IterableDataset':
    """Loads one split of an export; hands each reader the settings that it uses."""
    if not root:
        raise InputError(f'{name} needs data.root: set it to the folder of the export.')
    reader = import_module(f'.{FORMATS[name]}', __name__).load
    used = [key for key, parameter in signature(reader).parameters.items() if parameter.kind == parameter.KEYWORD_ONLY]
    return reader(split, Path(root), **{key: settings[key] for key in used})
