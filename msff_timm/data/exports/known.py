"""How the formats that are no exports are recognised: official layouts, tables, folders with metadata, and the Hub."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..table_splits import SUFFIXES, standard_split
from .tree import Tree

__all__ = ['HUB_ID', 'RECOGNISERS', 'find_table', 'is_official_coco', 'is_official_voc']

HUB_ID = re.compile(r'[\w.-]+/[\w.-]+(:[^@]+)?(@.+)?')
IMAGE_COLUMN = re.compile(r'(image|img|file|photo|picture)s?[ _-]?(id|file|name|path)?|path|fname', re.IGNORECASE)
HEAD = 1 << 16  # bytes of a table that hold its header


def is_official_coco(tree: Tree) -> bool:
    """Returns whether `coco2014` or `coco2017` reads a folder."""
    return any(_coco(tree, year) for year in ('2014', '2017'))


def _coco(tree: Tree, year: str) -> str | None:
    for folder in (f'train{year}', f'val{year}'):
        name = f'instances_{folder}.json'
        if name in tree.files.get('annotations', ()) and (tree.root / folder).is_dir():
            return f'annotations/{name}'
    return None


def is_official_voc(tree: Tree) -> bool:
    """Returns whether `voc2007` or `voc2012` reads a folder."""
    return any(_voc(tree, year) for year in ('2007', '2012'))


def _voc(tree: Tree, year: str) -> str | None:
    for folder in (f'VOC{year}', f'VOCdevkit/VOC{year}'):
        if f'{folder}/ImageSets/Main' in tree.files:
            return f'{folder}/ImageSets/Main'
    return 'ImageSets/Main' if tree.root.name == f'VOC{year}' and 'ImageSets/Main' in tree.files else None


def _table(tree: Tree) -> str | None:
    for name in _tables(tree):
        if standard_split(Path(name).stem):
            return name
    return find_table(tree)


def find_table(tree: Tree) -> str | None:
    """Returns the only table of a folder that has a column of images, whatever its name."""
    found = [name for name in _tables(tree) if any(map(IMAGE_COLUMN.fullmatch, _columns(tree.root / name)))]
    return found[0] if len(found) == 1 else None


def _tables(tree: Tree) -> list[str]:
    """Returns the tables of images of a folder.

    Metadata of `folder`, samples of Kaggle's submissions, and what `msff-timm data split` writes are none.
    """
    return [
        name
        for name in tree.files.get('', ())
        if Path(name).suffix.lower() in SUFFIXES['table']
        and not name.startswith(('metadata.', '_', 'split.csv'))
        and 'submission' not in name.lower()
        and not _holds_images(tree.root / name)
    ]


def _columns(path: Path) -> list[str]:
    """Returns the names of the columns of a table, as far as its first line shows them."""
    if path.suffix.lower() == '.parquet':
        return schema.names if (schema := _schema(path)) else []
    with open(path, 'rb') as file:
        lines = file.read(HEAD).decode('utf-8-sig', 'replace').split('\n')
    if path.suffix.lower() == '.jsonl':
        try:
            return list(json.loads(lines[0]))
        except (ValueError, TypeError, RecursionError):
            return []
    header = lines[1] if lines[0].startswith('sep=') and len(lines) > 1 else lines[0]
    return [name.strip('" \r') for name in re.split(r'[,;\t|]', header)]


def _schema(path: Path) -> pa.Schema | None:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return None


def _holds_images(path: Path) -> bool:
    """Returns whether a Parquet file holds images rather than their names, as data sets of the Hub do."""
    schema = _schema(path) if path.suffix.lower() == '.parquet' else None
    return any(pa.types.is_struct(each.type) and each.type.get_field_index('bytes') >= 0 for each in schema or ())


def _folder(tree: Tree) -> str | None:
    for folder, names in tree.files.items():
        if not folder or standard_split(folder):
            for name in names:
                if name.startswith('metadata.') and Path(name).suffix.lower() in SUFFIXES['folder']:
                    return f'{folder}/{name}' if folder else name
    return None


def _hub(tree: Tree) -> str | None:
    files = [name for name in tree.find('.parquet', most=1) if name.count('/') < 2]
    return next((name for name in files if _holds_images(tree.root / name)), None)


RECOGNISERS: dict[str, Callable[[Tree], str | None]] = {
    'coco2014': lambda tree: _coco(tree, '2014'),
    'coco2017': lambda tree: _coco(tree, '2017'),
    'folder': _folder,
    'hub': _hub,
    'table': _table,
    'voc2007': lambda tree: _voc(tree, '2007'),
    'voc2012': lambda tree: _voc(tree, '2012'),
}
