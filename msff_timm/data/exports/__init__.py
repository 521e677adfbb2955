"""Data sets as annotation tools export them, and how the format of a folder is recognised.

Each module reads one format with two functions:

- `recognise(root: Path) -> str | None` returns the evidence that a folder or a file is of this format, as a short
  phrase that follows "by" (e.g. `train/_annotations.coco.json`), or None. It looks at names (`tree.read_tree`) and at
  the heads of few files, and decodes no image.
- `load(split, root, *, ...) -> Dataset` loads one split. Its keyword-only arguments are the settings of
  `msff_timm.data.load` that it uses, by the same names.
"""

import os
from importlib import import_module
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...errors import InputError, unknown
from ..text import list_folder

if TYPE_CHECKING:
    import datasets

__all__ = ['FORMATS', 'Recognised', 'load', 'recognise', 'settings_of']

# Module of each format, by its name in `data.name`
FORMATS: dict[str, str] = {
    'coco': 'coco',
    'cvat': 'cvat',
    'folders': 'class_folders',
    'label_studio': 'label_studio',
    'roboflow': 'roboflow_classes',
    'voc': 'voc',
    'webdataset': 'webdataset',
    'yolo': 'yolo',
}
WEAK = ('folders',)  # formats that nearly every folder of images has: they count if there are no annotations


class Recognised(NamedTuple):
    """The format of a data set.

    Attributes:
        name: Name of the format, for `data.name`.
        evidence: Phrase on what decided.
        root: Folder or file to read: the given one, the only folder in it, or the only table in it.
    """

    name: str
    evidence: str
    root: str

    @property
    def note(self) -> str:
        """Line on what was recognised."""
        return f'recognised as {self.name} by {self.evidence} (data.name)'


def load(name: str, split: str, root: str | None, **settings: object) -> 'datasets.Dataset | datasets.IterableDataset':
    """Loads one split of an export; hands each reader the settings that it uses."""
    from ..table_splits import SPLITS

    if not root:
        raise InputError(f'{name} needs data.root: set it to the folder of the export.')
    if split not in SPLITS:
        raise unknown(f'split of {name}', split, SPLITS)
    reader = import_module(f'.{FORMATS[name]}', __name__).load
    return reader(split, Path(root), **{key: settings[key] for key in settings_of(name)})


def settings_of(name: str) -> list[str]:
    """Returns the settings that the reader of a format uses: its keyword-only arguments."""
    parameters = signature(import_module(f'.{FORMATS[name]}', __name__).load).parameters
    return [key for key, parameter in parameters.items() if parameter.kind == parameter.KEYWORD_ONLY]


def recognise(root: str | None) -> Recognised:
    """Recognises the format of a folder, of a file, or of the id of a data set on the Hub.

    Raises:
        InputError: There are no data, they are of no known format, or of several.
    """
    from ..table_splits import standard_split
    from .known import HUB_ID, RECOGNISERS

    if not root:
        raise InputError('data.root is null: set it to a folder, a table, or the id of a data set on the Hub.')
    if not os.path.exists(root):
        if HUB_ID.fullmatch(root) and not os.path.exists(root.partition('/')[0]):
            return Recognised('hub', f'its id {root}', root)
        raise InputError(f'{root}: there is no such folder or file.')
    path = _unwrap(Path(root))
    found = _recognise(path)
    if not found:
        raise InputError(
            f'{root}: no known format is recognised in it (found: {list_folder(path)}); known are'
            f' {", ".join(sorted({*FORMATS, *RECOGNISERS}))}: set data.name to one of them to see what it lacks.'
        )
    if len(found) > 1:
        kinds = ' or '.join(f'{name} by {evidence}' for name, evidence in found.items())
        raise InputError(f'{root}: may be read as {kinds}: set data.name to one of them.')
    ((name, evidence),) = found.items()
    within = path.relative_to(root).as_posix()
    if name == 'table' and path.is_dir() and not standard_split(Path(evidence).stem):
        path = path / evidence
    evidence = evidence if within == '.' else f'{within}/{evidence}'
    return Recognised(name, evidence, root if path == Path(root) else str(path))


def _unwrap(path: Path) -> Path:
    """Returns the folder of a data set below folders that hold nothing else, as archives often do."""
    from ..formats import image_suffixes
    from ..table_splits import standard_split

    while path.is_dir():
        visible = (entry for entry in path.iterdir() if not entry.name.startswith('.'))
        entries = list(islice(visible, 2))
        if len(entries) != 1 or not entries[0].is_dir() or standard_split(entries[0].name):
            break
        if all(entry.suffix.lower() in image_suffixes() for entry in entries[0].iterdir()):
            break  # the only label of a folder per label
        path = entries[0]
    return path


def _recognise(path: Path) -> dict[str, str]:
    """Returns the evidence for each format that a folder or file may be of."""
    from ..table_splits import SUFFIXES
    from .known import RECOGNISERS
    from .tree import read_tree

    read_tree.cache_clear()  # files may have changed since the last call
    found = {name: import_module(f'.{module}', __name__).recognise(path) for name, module in FORMATS.items()}
    if path.is_dir():
        found |= {name: recognise(read_tree(path)) for name, recognise in RECOGNISERS.items()}
    elif path.suffix.lower() in SUFFIXES['table']:
        found['table'] = path.name
    read_tree.cache_clear()
    found = {name: evidence for name, evidence in found.items() if evidence}
    # The table of another format is not a table of its own.
    if any(found.get('table') == evidence for name, evidence in found.items() if name != 'table'):
        del found['table']
    return {name: evidence for name, evidence in found.items() if name not in WEAK} or found
