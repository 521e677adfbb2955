"""Reader of WebDataset shards: tar files of samples, each an image and its labels, e.g. `000.jpg` and `000.json`.

Labels are numbers or names in `.cls`, names in `.txt`, one on each line, or a list in `.json`.
"""

import json
import os
import re
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import fsspec
from datasets import Dataset, IterableDataset, StreamingDownloadManager
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.webdataset.webdataset import base_plus_ext
from fsspec.implementations.local import LocalFileSystem

from ...errors import InputError, one_line, unknown
from ..formats import image_suffixes
from ..label_lists import LabelLists, find_delimiter, texts_of
from ..records import features, set_notes
from ..table_splits import SPLITS, standard_split
from ..text import check_names, join_names, quote
from .splits import choose_split
from .tree import read_tree

__all__ = ['load', 'recognise']

SUFFIXES = ('.tar', '.tar.gz', '.tgz')
# Files of label names beside the shards: one on each line, or a list in JSON
NAME_FILES = ('label_names.txt', 'label_names.json', 'label_names', 'classes.txt', 'classes.json')
LABEL_FIELDS = ('cls', 'json', 'txt')
KEYS = ('labels', 'label')  # of JSON objects
NUM_LOOKED_AT = 100  # samples at the start that show how the labels are written
MOST_SHARDS = 1_000_000  # that braces may stand for

Fields = dict[str, bytes]  # files of a sample by their extension


@dataclass(frozen=True)
class Format:
    """How samples hold their image and their labels.

    Attributes:
        field: Extension of the labels.
        key: Key of the labels in a JSON object; None if they are the whole content.
        image: Extension of the image; None for the only image of each sample.
        delimiter: Text between two labels on a line; None to find it by the label names.
        has_vectors: True if the labels are one 0 or 1 for each label name.
    """

    field: str
    key: str | None
    image: str | None
    delimiter: str | None
    has_vectors: bool = False

    def find_image(self, fields: Fields, where: str) -> str:
        """Returns the extension of the image of a sample."""
        found = [self.image] if self.image in fields else [field for field in fields if _is_image(field)]
        if len(found) != 1 or self.image not in (None, found[0]):
            wanted = f'.{self.image}' if self.image else 'image, or several: set data.image_column to an extension'
            raise InputError(f'{where} has no {wanted} (found: {join_names(sorted(fields))}).')
        return found[0]

    def read_items(self, fields: Fields, where: str) -> list[object]:
        """Returns the labels of a sample as they are written: numbers, or text."""
        if self.field not in fields:
            raise InputError(f'{where} has no .{self.field} (found: {join_names(sorted(fields))}).')
        try:
            text = fields[self.field].decode('utf-8-sig')
            value = json.loads(text) if self.field == 'json' else None
        except (ValueError, RecursionError) as e:
            raise InputError(f'{where}: .{self.field} cannot be read ({quote(str(e))}).') from None
        if self.field != 'json':
            words = re.split(r'[\s,;]+', text.strip())
            is_numbers = self.field == 'cls' and all(re.fullmatch('[0-9]{1,9}', word) for word in words)
            return [int(word) for word in words] if is_numbers else text.splitlines()
        if self.key is not None:
            if not isinstance(value, dict) or self.key not in value:
                raise InputError(f'{where}: .json has no key {self.key!r}.')
            value = value[self.key]
        items = value if isinstance(value, list) else [] if value is None else [value]
        for item in items:
            if type(item) not in (int, str):
                raise InputError(f'{where} has the label {quote(item)}: must be a number or text.')
        return items

    def read_labels(self, fields: Fields, names: Sequence[str], where: str) -> set[str]:
        """Returns the labels of a sample.

        Raises:
            InputError: The labels are invalid, or a number has no name.
        """
        items = self.read_items(fields, where)
        if self.has_vectors:
            if len(items) != len(names) or not {0, 1}.issuperset(items):
                raise InputError(f'{where} has {quote(items)}: must be one 0 or 1 for each of {len(names)} labels.')
            return {name for name, item in zip(names, items, strict=True) if item}
        lists, labels = LabelLists(self.delimiter, names), set()
        for item in items:
            if isinstance(item, str) and not (item not in names and item.strip().isdecimal()):
                labels.update([item.strip()] if self.field == 'json' else lists.read(item, where))
            elif 0 <= int(item) < len(names):
                labels.add(names[int(item)])
            else:
                raise InputError(f'{where} has the label {quote(item)}: must be a number from 0 to {len(names) - 1}.')
        return labels


def recognise(root: Path) -> str | None:
    """Returns the first shard whose first sample has an image and labels."""
    tree = read_tree(root)
    for name in tree.find(*SUFFIXES):
        try:
            _, fields = next(_samples(str(tree.root / name)))
        except (InputError, StopIteration):
            continue
        if any(map(_is_image, fields)) and not fields.keys().isdisjoint(LABEL_FIELDS):
            return name
    return None


def load(
    split: str,
    root: Path,
    *,
    image_column: str | None = None,
    label_columns: Sequence[str] | None = None,
    label_delimiter: str | None = None,
    label_names: Sequence[str] | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Loads one split of WebDataset shards.

    The names of the shards or of their folders name the split (`train-000000.tar`); without any, all shards belong to
    `train`. Label names are found in `classes.txt` or `label_names.txt` beside the shards. Without such a file, they
    are collected from the shards of all splits if the labels are names and `streaming` is off.

    Args:
        split: `train`, `validation` or `test`.
        root: Folder of the shards, or their path with braces (`train-{000..123}.tar`); also a URL that fsspec opens.
        image_column: Extension of the images; None for the only one.
        label_columns: Extension or JSON key of the labels; None to find it.
        label_delimiter: Text between two labels on one line.
        label_names: Label names in the order of the logits; None to find them.
        streaming: True to read the shards while they are used, without a copy on disk.

    Raises:
        InputError: There are no shards, or their labels are invalid or unknown. In a stream, an invalid sample raises
            when it is read.
    """
    where = re.sub('^([a-z0-9]{2,}):/+', r'\1://', str(root))  # `Path` merges the slashes of a URL
    source = _Source(where)
    choose_split(split, source.shards, where)
    first = source.shards[split][0]
    samples = list(islice(_samples(first), NUM_LOOKED_AT))
    if not samples:
        raise InputError(f'{first}: contains no samples.')
    form = _find_format(samples, image_column, label_columns, label_delimiter, first)
    names, origin, how = list(label_names or ()), 'data.label_names', ''
    if not names:
        names, origin = source.read_names()
    if not names and streaming:
        raise InputError(
            f'{where}: the labels of a stream are not known in advance: set data.label_names, or write them to'
            ' classes.txt beside the shards, one on each line.'
        )
    if not names:
        names, form, how = _collect_names(source.shards, form, where)
        origin = 'all that occur'
    check_names(f'{where}: {origin}', names)
    if _has_vectors(samples, form, len(names), first):
        form, how = replace(form, has_vectors=True), ', one 0 or 1 for each label'
    kinds = {f'.{field}' for _, fields in samples for field in fields if not _is_image(field)} - {f'.{form.field}'}
    note = f'labels: .{form.field}' + (f', key {form.key!r}' if form.key else '') + f'{how}; names: {origin}'
    note += f'; not labels: {join_names(sorted(kinds))}' if kinds else ''
    arguments = {
        'shards': source.shards[split],
        'form': form,
        'names': tuple(names),
        'folder': source.folder,
        'stamps': source.stamps(split),
    }
    if streaming:
        return set_notes(IterableDataset.from_generator(_rows, features(names), arguments), [note])
    try:
        return set_notes(Dataset.from_generator(_rows, features(names), gen_kwargs=arguments), [note])
    except DatasetGenerationError as e:
        raise e.__cause__ if isinstance(e.__cause__, InputError) else e from None


def _rows(
    shards: list[str], form: Format, names: tuple[str, ...], folder: str, stamps: tuple[str, ...]
) -> Iterator[dict]:
    """Yields the rows of shards; `stamps` makes `datasets` read shards anew after they have changed."""
    number_of = {name: number for number, name in enumerate(names)}
    for shard in shards:
        base = re.sub(r'\.(tar|tgz|tar\.gz)$', '', shard.removeprefix(folder).lstrip('/'))
        keys = set()
        for key, fields in _samples(shard):
            where = f'{shard}: {key}'
            if key in keys:
                raise InputError(f'{where} occurs twice: the files of a sample must follow each other.')
            keys.add(key)
            image = form.find_image(fields, where)
            labels = _indices(form.read_labels(fields, names, where), number_of, where)
            yield {
                'image': {'bytes': fields[image], 'path': f'{os.path.basename(key)}.{image}'},
                'labels': labels,
                'ignore': [],
                'area': [],
                'image_id': f'{base}/{key}',
            }


def _samples(shard: str, with_images: bool = True) -> Iterator[tuple[str, Fields]]:
    """Yields the key and the files of each sample: those that follow each other and differ in the extension only."""
    key, fields = None, {}
    try:
        for path, file in StreamingDownloadManager().iter_archive(shard):
            name, field = base_plus_ext(path)
            if name is None:
                continue
            field = field.lower()
            if name != key:
                if fields:
                    yield key, fields
                key, fields = name, {}
            if field in fields:
                raise InputError(f'{shard}: {name}.{field} occurs twice: remove one of them.')
            fields[field] = file.read() if with_images or not _is_image(field) else b''
    except (tarfile.TarError, OSError, EOFError, zlib.error) as e:
        raise InputError(f'{shard}: is not a whole tar file, or cannot be read ({one_line(e)}).') from None
    if fields:
        yield key, fields


def _indices(labels: Collection[str], number_of: dict[str, int], where: str) -> list[int]:
    """Returns the sorted indices of labels."""
    for label in labels:
        if label not in number_of:
            raise InputError(f'{where}: {unknown("label", label[:80], number_of)}')
    return sorted(number_of[label] for label in labels)


def _is_image(field: str) -> bool:
    return f'.{field.rpartition(".")[2]}' in image_suffixes()


# --- shards


class _Source:
    """Shards in a folder or at paths with braces, on this machine or at a URL.

    Args:
        root: Folder or pattern.

    Attributes:
        folder: Path or URL of the folder of all shards.
        shards: Sorted paths or URLs of the shards of each split.

    Raises:
        InputError: There are no shards, some are missing, or only some name a split.
    """

    def __init__(self, root: str):
        try:
            self._system, path = fsspec.url_to_fs(root)
            folder, paths = self._find(root, path)
        except (OSError, ValueError, ImportError) as e:
            raise e if isinstance(e, InputError) else InputError(f'{root}: cannot be listed ({one_line(e)}).') from None
        self.folder = self._url(folder)
        splits = _divide(paths, folder, root)
        self.shards = {split: list(map(self._url, paths)) for split, paths in splits.items()}

    def _find(self, root: str, path: str) -> tuple[str, list[str]]:
        """Returns the folder of the shards and their sorted paths."""
        if self._system.isdir(path):
            paths = sorted(name for name in self._system.find(path) if name.endswith(SUFFIXES))
            paths = [name for name in paths if not re.search(r'/(\.|__MACOSX/)', name.removeprefix(path))]
            if not paths:
                raise InputError(f'{root}: contains no shards, e.g. train-000000.tar.')
            return path, paths
        paths = _expand(path)
        folders = {os.path.dirname(name) for name in paths}
        there = set().union(*(self._system.find(folder, maxdepth=1) for folder in folders))
        missing = [name for name in paths if name not in there]
        if missing:
            raise InputError(f'{root}: {len(missing)} of {len(paths)} shards are missing (e.g. {missing[0]}).')
        return os.path.commonpath(folders), paths

    def _url(self, path: str) -> str:
        return path if isinstance(self._system, LocalFileSystem) else self._system.unstrip_protocol(path)

    def stamps(self, split: str) -> tuple[str, ...]:
        """Returns a text for each shard that changes with its content."""
        return tuple(map(self._system.ukey, self.shards[split]))

    def read_names(self) -> tuple[list[str], str]:
        """Returns the label names of a file beside the shards, and the name of the file; empty without such a file."""
        for name in NAME_FILES:
            path = f'{self.folder}/{name}'
            if not self._system.isfile(path):
                continue
            try:
                text = self._system.cat_file(path).decode('utf-8-sig')
                names = json.loads(text) if name.endswith('.json') else text.splitlines()
            except (ValueError, RecursionError) as e:
                raise InputError(f'{path}: cannot be read ({quote(str(e))}).') from None
            if not isinstance(names, list) or not all(isinstance(label, str) for label in names):
                raise InputError(f'{path}: contains {quote(names)}: must be a list of label names.')
            return [label.strip() for label in names if label.strip()], name
        return [], ''


def _expand(pattern: str) -> list[str]:
    """Expands braces.

    Examples:
        >>> _expand('{train,val}-{08..09}.tar')
        ['train-08.tar', 'train-09.tar', 'val-08.tar', 'val-09.tar']
    """
    brace = re.search(r'\{([^{}]*)\}', pattern)
    if brace is None:
        return [pattern]
    ends = re.fullmatch(r'(\d{1,9})\.\.(\d{1,9})', brace[1])
    if ends and not 0 <= int(ends[2]) - int(ends[1]) < MOST_SHARDS:
        raise InputError(f'{pattern}: {brace[0]} must be {{FIRST..LAST}}, at most {MOST_SHARDS:,} numbers.')
    numbers = range(int(ends[1]), int(ends[2]) + 1) if ends else ()
    items = [f'{number:0{len(ends[1])}d}' for number in numbers] if ends else brace[1].split(',')
    rest = _expand(pattern[brace.end() :])
    return [pattern[: brace.start()] + item + end for item in items for end in rest]


def _divide(shards: list[str], folder: str, root: str) -> dict[str, list[str]]:
    """Assigns shards to splits by the last word of their path that names one."""
    splits = defaultdict(list)
    for shard in shards:
        words = re.split('[^a-zA-Z]+', shard.removeprefix(folder))
        splits[next(filter(None, map(standard_split, reversed(words))), None)].append(shard)
    if None in splits and len(splits) > 1:
        raise InputError(f'{root}: the name of {splits[None][0]} names no split, but others do: rename it.')
    if None in splits:
        return {standard_split(os.path.basename(folder)) or 'train': shards}
    return {split: splits[split] for split in SPLITS if split in splits}


# --- labels


def _find_format(
    samples: list[tuple[str, Fields]],
    image_column: str | None,
    label_columns: Sequence[str] | None,
    delimiter: str | None,
    shard: str,
) -> Format:
    """Finds which files of the first samples hold the images and the labels."""
    key, fields = samples[0]
    image = image_column and image_column.lower().lstrip('.')
    try:
        content = json.loads(fields.get('json', b'null'))
    except (ValueError, RecursionError) as e:
        raise InputError(f'{shard}: {key}: .json cannot be read ({quote(str(e))}).') from None
    keys = list(content) if isinstance(content, dict) else []
    if label_columns:
        name = label_columns[0].lstrip('.')
        if len(label_columns) > 1 or name not in (*fields, *keys):
            raise InputError(
                f'{shard}: data.label_columns is {quote(list(label_columns))}: must be one extension or key of .json'
                f' (found: {join_names([*fields, *keys])}).'
            )
        return Format('json', name, image, delimiter) if name not in fields else Format(name, None, image, delimiter)
    found = [('cls', None)] if 'cls' in fields else []
    found += [('json', name) for name in KEYS if name in keys][:1] or [('json', None)] * isinstance(content, list)
    if not found and 'txt' in fields and not keys:
        found = [('txt', None)]
    if len(found) != 1:
        problem = 'labels in both .cls and .json' if found else 'no labels in .cls, .txt or a list of .json'
        raise InputError(
            f'{shard}: {key} has {problem} (found: {join_names([*fields, *keys])}): set data.label_columns to the'
            ' extension of the labels, or to their key in .json.'
        )
    return Format(*found[0], image, delimiter)


def _has_vectors(samples: list[tuple[str, Fields]], form: Format, num_labels: int, shard: str) -> bool:
    """Returns whether each of the first samples has one 0 or 1 for each label."""
    rows = [form.read_items(fields, f'{shard}: {key}') for key, fields in samples]
    return num_labels > 1 and all(len(row) == num_labels and {0, 1}.issuperset(row) for row in rows)


def _collect_names(splits: dict[str, list[str]], form: Format, root: str) -> tuple[list[str], Format, str]:
    """Reads the labels of all splits; returns their names, the format, and the end of a note on it."""
    rows = []
    for shards in splits.values():
        for shard in shards:
            for key, fields in _samples(shard, with_images=False):
                items = form.read_items(fields, f'{shard}: {key}')
                for item in items:
                    if isinstance(item, int) or item.strip().isdecimal():
                        raise InputError(
                            f'{shard}: {key} has the label {quote(item)}, a number: set data.label_names, or write the'
                            ' label names to classes.txt beside the shards, one on each line.'
                        )
                rows.extend(items)
    note = ''
    if form.field != 'json' and form.delimiter is None:
        delimiter, note = find_delimiter(texts_of(rows), None, f'{root}: .{form.field}')
        form = replace(form, delimiter=delimiter)
    lists = LabelLists(form.delimiter)
    names = sorted(
        {name for row in rows for name in ([row.strip()] if form.field == 'json' else lists.read(row, root))}
    )
    if not names:
        raise InputError(f'{root}: contains no labels: set data.label_names.')
    return names, form, note
