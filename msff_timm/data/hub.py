"""Data sets of the Hub, or of local files that `datasets` reads by itself."""

import ast
import copy
import glob
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath

import datasets
import huggingface_hub
from datasets import (
    ClassLabel,
    Dataset,
    Features,
    Image,
    IterableDataset,
    LargeList,
    List,
    Value,
)
from datasets.data_files import DataFilesDict
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.splits import SplitDict

from ..errors import InputError, unknown
from . import table
from .cells import (
    check_names,
    check_settings,
    encode,
    find_delimiter,
    is_label,
    labels_note,
    name_vector,
    of_split,
    read_state,
    split_labels,
    texts_of,
)
from .records import features, set_notes

__all__ = ['load']

ID = re.compile(r'(?P<path>[\w.-]+/[\w.-]+)(:(?P<config>[^@]+))?(@(?P<revision>.+))?')
ID_COLUMNS = ('image_id', 'id')
OURS = ('labels', 'ignore', 'area', 'image_id')


def load(
    split: str,
    root: str | None,
    image_column: str | None = None,
    label_columns: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    label_delimiter: str | None = None,
    minus_one: str = 'unannotated',
    blank: str = 'unannotated',
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Loads one split of a data set of the Hub; `msff_timm.data.load` explains the arguments and the columns.

    Labels are a `ClassLabel` or text, one or a list of them, or a column of 1, 0 and -1 or null for each label.
    Images are named by `image_id` or `id` where there is such a column, else by split and number of their row
    (`train-7`), in a stream the number within what the process reads.

    Of Parquet files only those of the split are fetched, unless the labels have no names but those that all splits
    hold.

    Args:
        root: `organisation/name`, `organisation/name:configuration`, either with `@revision`, or a folder.

    Raises:
        InputError: It cannot be had, or does not hold what it should; in a stream a bad row raises where it is read.
    """
    if not root:
        raise InputError('hub needs data.root: the id of a data set on the Hub, or a folder of Parquet files.')
    check_settings(label_delimiter, minus_one, blank)
    check_names('data.label_names', label_names)
    check_names('data.label_columns', label_columns)
    source = _Source(root)
    if source.folder is not None:
        if streaming:
            raise InputError(
                f'{root}: its labels are in a metadata file above the splits: set data.streaming to false.'
            )
        return table.load(
            'folder',
            split,
            source.fetch_folder(split),
            label_columns=label_columns,
            label_names=label_names,
            label_delimiter=label_delimiter,
            minus_one=minus_one,
            blank=blank,
        )
    found = _find_split(split, source.splits, root)
    dataset, where = source.read(found, streaming), f'{root}, split {found}'
    if dataset.features is None:
        raise InputError(f'{root}: its columns are not known before it is read: write Parquet, or do not stream it.')
    image = _image_column(dataset.features, image_column, where)
    columns = _label_columns(dataset.features, image, label_columns, label_names, where)
    is_binary = len(columns) > 1 or columns != ['labels'] and _is_number(dataset.features[columns[0]])
    used = [*columns, *(['ignore'] if 'ignore' in dataset.features and 'ignore' not in columns else [])]
    class_names = {name: names for name in used if (names := _names_of(dataset.features[name]))}
    notes = [f'labels: column {columns[0]!r}']
    if is_binary:
        check_names(where, columns)
        label_names = table.match_names(columns, label_names, where)
        others = [name for name in dataset.features if name not in (image, *used, *ID_COLUMNS)]
        notes = [labels_note(columns, others)]
    elif label_names is None:
        label_names = class_names.get(columns[0])
    if source.is_of_folders and columns == ['label'] and all(map(of_split, class_names.get('label', ['']))):
        raise InputError(
            f'{root}: has no labels: its folders are only those of the splits; write a metadata.csv with the columns'
            ' file_name and labels.'
        )
    texts = [name for name in used if not (is_binary and name in columns) and name not in class_names]
    is_vector = False
    delimiter = label_delimiter
    if streaming and texts:
        if label_names is None:
            raise InputError(f'{root}: the labels of a stream are not known in advance: set data.label_names.')
        is_vector = columns[0] in texts and _is_number(_inner(dataset.features[columns[0]]))
    elif texts:
        parts = {found: dataset} if label_names is not None else {key: source.read(key, False) for key in source.splits}
        if len(parts) > 1 and not source.is_local:
            notes[0] += ', named in all splits (data.label_names saves fetching the others)'
        values = {name: [] for name in texts}
        for part in parts.values():
            for name in set(texts) & set(part.features):
                values[name] += chain.from_iterable(_batches(part, name))
        labels = values.get(columns[0], [])
        is_vector = bool(labels) and name_vector(labels, label_names, f'{where}: {columns[0]!r}') is not None
        if delimiter is None:
            column = f'{root}: {columns[0]!r}'
            delimiter, note = find_delimiter(texts_of(chain.from_iterable(values.values())), label_names, column)
            notes[0] += note
        if label_names is None:
            label_names = _names_in(parts, texts, delimiter, columns[0], root)
    if not streaming and not len(dataset):
        raise InputError(f'{where}: holds no row.')
    image_id = next((name for name in ID_COLUMNS if name in dataset.features and name not in (image, *columns)), None)
    rows = partial(
        _rows,
        columns=columns,
        is_binary=is_binary,
        is_vector=is_vector,
        class_names=class_names,
        image_id=image_id,
        number_of={name: number for number, name in enumerate(label_names)},
        delimiter=delimiter,
        meanings=(minus_one, blank),
        split=found,
        where=where,
    )
    schema = features(list(label_names))
    inputs = used + ([image_id] if image_id else [])
    if not streaming:
        images = dataset.select_columns([image]).rename_columns({image: 'image'}).cast_column('image', Image())
        # Beside the images, not with them: what `map` returns is written to the cache once more.
        rest = dataset.select_columns(inputs).map(
            rows,
            batched=True,
            with_indices=True,
            remove_columns=inputs,
            features=Features({name: schema[name] for name in OURS}),
        )
        return set_notes(datasets.concatenate_datasets([images, rest], axis=1), notes)
    stream = dataset.select_columns([image, *inputs]).cast_column(image, Image(decode=False))
    mapped = stream.map(
        partial(_with_image, rows=rows, image=image),
        batched=True,
        with_indices=True,
        remove_columns=[image, *inputs],
    )
    # Not by `map`, which takes what it returns for decoded.
    return set_notes(mapped.cast(schema), notes)


class _Source:
    """A data set of the Hub, or a folder, that is read split by split.

    Args:
        root: As `load` takes it.

    Attributes:
        is_local: Whether it is a folder.
        splits: Names of the splits that there are.
        folder: Folder of a metadata file that lies above the folders of the splits, relative to the data set; None
            where there is none.

    Raises:
        InputError: It cannot be had.
    """

    def __init__(self, root: str):
        self.root, self.is_local = root, os.path.isdir(root)
        match = None if self.is_local else ID.fullmatch(root)
        if not self.is_local and (match is None or os.path.exists(root)):
            raise InputError(f'{root}: is neither a folder nor an id organisation/name of the Hub: check data.root.')
        self._path, config, self._revision = (root, None, None) if match is None else match.group(1, 3, 5)
        self._fetched = Path(
            datasets.config.HF_DATASETS_CACHE, 'msff_timm', 'hub', hashlib.sha256(root.encode()).hexdigest()[:32]
        )
        self._builder, self.folder, self._snapshot = None, None, None
        try:
            self._builder = datasets.load_dataset_builder(self._path, config, revision=self._revision)
        except Exception as e:  # of three libraries and any format: whatever it is, the data set cannot be had
            if not self._find_fetched(e):
                raise InputError(_reason(root, self.is_local, e)) from e
            return
        files = self._builder.config.data_files  # None of one that `datasets` takes from its cache
        if files and (mine := self._find_files(set(map(str, files)))):
            self._builder = datasets.load_dataset_builder(self._path, config, revision=self._revision, data_files=mine)
            files = self._builder.config.data_files
        self.splits = [str(name) for name in files or self._builder.info.splits or ()]
        if files and isinstance(self._builder, ImageFolder):
            self.folder = self._find_metadata()

    def _find_files(self, splits: set[str]) -> dict[str, list[str]] | None:
        """Finds `Train/`, `Val.parquet` and the like, which `datasets` knows in small letters only.

        Returns:
            Files of each split; None where `datasets` has found all splits by itself.
        """
        suffixes = {Path(str(file)).suffix for files in self._builder.config.data_files.values() for file in files}
        found, is_missed = {}, False
        for folder in ('', 'data'):
            for name, is_folder in self._list(folder):
                word = re.split(r'[-._ 0-9]', name)[0]
                split = of_split(word)
                if split and (is_folder or Path(name).suffix in suffixes):
                    is_missed |= word != word.lower() and split not in map(of_split, splits)
                    found.setdefault(split, []).append(str(PurePosixPath(folder, name, *(['**'] if is_folder else []))))
        return found if is_missed and 'train' in found else None

    def _list(self, folder: str) -> list[tuple[str, bool]]:
        """Lists the names in a folder, and which of them are folders."""
        if self.is_local:
            path = Path(self.root, folder)
            return [(entry.name, entry.is_dir()) for entry in sorted(path.iterdir())] if path.is_dir() else []
        system = huggingface_hub.HfFileSystem(endpoint=datasets.config.HF_ENDPOINT)
        try:
            entries = system.ls(str(PurePosixPath(self._builder.base_path.removeprefix('hf://'), folder)))
        except FileNotFoundError:
            return []
        return sorted((os.path.basename(entry['name']), entry['type'] == 'directory') for entry in entries)

    @property
    def is_of_folders(self) -> bool:
        """Whether folders give the labels."""
        return isinstance(self._builder, ImageFolder)

    def read(self, split: str, streaming: bool) -> Dataset | IterableDataset:
        """Reads a split, which is fetched first unless it is streamed."""
        try:
            if self._builder is None:
                dataset = _from_arrow(self._fetched / split)
                return dataset.to_iterable_dataset() if streaming else dataset
            if streaming:
                return self._builder.as_streaming_dataset(split=split)
            if isinstance(self._builder, Parquet):
                return self._read_one(split)
            self._builder.download_and_prepare()
            return self._builder.as_dataset(split=split)
        except Exception as e:  # as above
            raise InputError(_reason(self.root, self.is_local, e)) from e

    def _read_one(self, split: str) -> Dataset:
        """Fetches one split of Parquet files, where `datasets` would fetch all; each has a folder of its own."""
        builder = copy.deepcopy(self._builder)
        builder.config.data_files = DataFilesDict({split: self._builder.config.data_files[split]})
        if builder.info.splits:
            builder.info.splits = SplitDict({split: builder.info.splits[split]}, dataset_name=builder.dataset_name)
        builder.info.download_size = None
        content = hashlib.sha256(builder.cache_dir.encode()).hexdigest()[:32]
        folder = self._fetched / content / split
        builder.download_and_prepare(output_dir=str(folder))
        return _from_arrow(folder)

    def _find_fetched(self, error: Exception) -> bool:
        """Finds what an earlier run has fetched, where the Hub is out of reach."""
        is_away = datasets.config.HF_HUB_OFFLINE or isinstance(error, ConnectionError)
        if self.is_local or not is_away or isinstance(error, datasets.exceptions.DatasetNotFoundError):
            return False
        found = sorted(self._fetched.glob(f'*/*/{datasets.config.DATASET_INFO_FILENAME}'), key=os.path.getmtime)
        if found:
            self._fetched = found[-1].parents[1]
            self.splits = [path.parent.name for path in found if path.parents[1] == self._fetched]
            return True
        try:
            self._snapshot = huggingface_hub.snapshot_download(
                self._path,
                repo_type='dataset',
                revision=self._revision,
                allow_patterns=[*_metadata_of(''), *_metadata_of('data')],
                local_files_only=True,
            )
        except Exception:
            return False
        self.folder = next((base for base in ('', 'data') if _has_metadata(Path(self._snapshot, base))), None)
        return self.folder is not None

    def _find_metadata(self) -> str | None:
        """Finds a metadata file above the folders of the splits, which `datasets` passes over, if no split has one."""
        names = [self._relative(file) for files in self._builder.config.data_files.values() for file in files]
        if any(os.path.basename(name) in ImageFolder.METADATA_FILENAMES for name in names):
            return None
        above = sorted({str(folder) for name in names for folder in PurePosixPath(name).parents}, key=len)
        if self.is_local:
            return next((folder for folder in above if _has_metadata(Path(self.root, folder))), None)
        there = set(huggingface_hub.HfApi().list_repo_files(self._path, repo_type='dataset', revision=self._commit))
        return next((folder for folder in above if not there.isdisjoint(_metadata_of(folder))), None)

    def fetch_folder(self, split: str) -> str:
        """Fetches the images of a split whose labels are in a metadata file above; returns the folder of that file."""
        if self.is_local:
            return os.path.join(self.root, self.folder)
        if self._snapshot is None:
            files = self._builder.config.data_files[_find_split(split, self.splits, self.root)]
            folders = {os.path.dirname(self._relative(file)) for file in files}
            patterns = [*_metadata_of(self.folder), *(f'{glob.escape(folder)}/*' for folder in folders)]
            try:
                self._snapshot = huggingface_hub.snapshot_download(
                    self._path, repo_type='dataset', revision=self._revision, allow_patterns=patterns
                )
            except Exception as e:  # as above
                raise InputError(_reason(self.root, self.is_local, e)) from e
        return os.path.join(self._snapshot, self.folder)

    @property
    def _commit(self) -> str:
        return self._builder.base_path.partition('@')[2].partition('/')[0]

    def _relative(self, file: object) -> str:
        return str(file).removeprefix(f'{self._builder.base_path}'.rstrip('/') + '/')


def _metadata_of(folder: str) -> list[str]:
    return [str(PurePosixPath(folder, name)) for name in ImageFolder.METADATA_FILENAMES]


def _has_metadata(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ImageFolder.METADATA_FILENAMES)


def _from_arrow(folder: Path) -> Dataset:
    """Opens what `datasets` has prepared of the split that a folder is named after."""
    parts = [*folder.glob(f'*-{folder.name}.arrow'), *folder.glob(f'*-{folder.name}-?????-of-?????.arrow')]
    return datasets.concatenate_datasets([Dataset.from_file(str(path)) for path in sorted(parts)])


def _find_split(split: str, splits: Collection[str], root: str) -> str:
    """Finds the split of this name, or of another name that `datasets` has for it."""
    if split in splits:
        return split
    found = [name for name in splits if of_split(split) is not None and of_split(name) == of_split(split)]
    if len(found) > 1:
        raise InputError(f'{root}: both {found[0]} and {found[1]} are names of the split {split}: give one of these.')
    if not found:
        raise InputError(f'{root}: {unknown("split", split, splits)}')
    return found[0]


def _reason(root: str, is_folder: bool, error: Exception) -> str:
    lines = [line.strip() for line in f'{error}'.splitlines() if line.strip()]
    reason = f'{type(error).__name__}: {lines[0].rstrip(".") if lines else "no more is known"}'
    names = re.search(r'among the available configs: (\[.*\])', f'{error}')
    if names:
        configurations = ', '.join(ast.literal_eval(names[1]))
        if is_folder:
            return (
                f'{root}: has several configurations ({configurations}): write default: true at one in its README.md.'
            )
        return f'{root}: has several configurations ({configurations}): choose one, as data.root {_of(root, names[1])}.'
    cause = error.__cause__
    if cause is not None and not isinstance(error, datasets.exceptions.DatasetNotFoundError):
        reason += f' ({type(cause).__name__}: {(str(cause).splitlines() or [""])[0].rstrip(".")})'
    if is_folder:
        return f'{root}: cannot be read as a data set: {reason}. It needs files such as train-00000-of-00001.parquet.'
    if datasets.config.HF_HUB_OFFLINE:
        mend = 'HF_HUB_OFFLINE is set: unset it, or load the data set once while online'
    elif isinstance(error, datasets.exceptions.DatasetNotFoundError):
        mend = 'check the id in data.root, ask for access on its page, or log in (hf auth login)'
    elif 'scripts are no longer supported' in reason:
        mend = 'code of a data set is never run: convert it to Parquet'
    elif isinstance(error, ConnectionError):
        mend = 'check the network and HF_ENDPOINT, or load the data set once while online'
    else:
        mend = 'check the files of the data set'
    return f'{root}: cannot be loaded from {datasets.config.HF_ENDPOINT}: {reason}; {mend}.'


def _image_column(schema: Features, wanted: str | None, where: str) -> str:
    if wanted is not None and wanted not in schema:
        raise InputError(f'{where}: {unknown("image column", wanted, schema)}')
    pictures = [name for name, feature in schema.items() if _is_picture(feature)]
    for name in [wanted] if wanted else ['image', 'file_name', *(pictures if len(pictures) == 1 else [])]:
        if name in pictures:
            return name
    what = f'{wanted!r} holds no pictures' if wanted else 'has no column of pictures, or several'
    raise InputError(f'{where}: {what}: data.image_column names it (pictures: {", ".join(pictures) or "none"}).')


def _is_picture(feature: object) -> bool:
    if isinstance(feature, dict):
        return set(feature) == {'bytes', 'path'}
    return isinstance(feature, Image) or isinstance(feature, Value) and feature.dtype in ('binary', 'large_binary')


def _of(root: str, names: str) -> str:
    """Writes the root with the first configuration."""
    path, at, revision = root.partition('@')
    return f'{path}:{ast.literal_eval(names)[0]}{at}{revision}'


def _label_columns(
    schema: Features, image: str, wanted: Sequence[str] | None, label_names: Collection[str] | None, where: str
) -> list[str]:
    for name in wanted or ():
        if name not in schema or name == image:
            raise InputError(f'{where}: {unknown("label column", name, [other for other in schema if other != image])}')
    if wanted:
        columns = list(wanted)
    elif 'labels' in schema:
        columns = ['labels']
    else:
        columns = [name for name in schema if name != image and is_label(name, label_names)]
    if not columns:
        raise InputError(f'{where}: has no column of labels (there: {", ".join(schema)}).')
    for name in columns:
        if len(columns) > 1 and not _is_number(schema[name]):
            raise InputError(
                f'{where}: the column {name!r} does not hold 1, 0 and -1: data.label_columns picks the labels.'
            )
    return columns


def _is_number(feature: object) -> bool:
    return isinstance(feature, Value) and feature.dtype.startswith(('int', 'uint', 'float', 'bool', 'null'))


def _inner(feature: object) -> object:
    return feature.feature if isinstance(feature, (List, LargeList)) else None


def _names_of(feature: object) -> list[str] | None:
    inner = _inner(feature) or feature
    return inner.names if isinstance(inner, ClassLabel) else None


def _names_in(splits: dict[str, Dataset], columns: list[str], delimiter: str, column: str, root: str) -> list[str]:
    """Names all labels of all splits, or training and validation would number them differently."""
    found = set()
    for split, dataset in splits.items():
        for name in set(columns) & set(dataset.features):
            for row, value in enumerate(chain.from_iterable(_batches(dataset, name))):
                found.update(split_labels(value, delimiter, f'{root}, split {split}: row {row}: {name!r}'))
    if not found:
        raise InputError(f'{root}: holds no label: fill the column {column!r}, or set data.label_names.')
    check_names(root, sorted(found))
    return sorted(found)


def _batches(dataset: Dataset, column: str, size: int = 1000) -> Iterable[list]:
    for batch in dataset.select_columns([column]).iter(size):
        yield batch[column]


def _rows(
    batch: dict[str, list],
    indices: list[int],
    columns: list[str],
    is_binary: bool,
    is_vector: bool,
    class_names: dict[str, list[str]],
    image_id: str | None,
    number_of: dict[str, int],
    delimiter: str | None,
    meanings: tuple[str, str],
    split: str,
    where: str,
) -> dict[str, list]:
    """Makes the columns of every data set but the images from a batch of rows."""
    result = {name: [] for name in OURS}
    for position, index in enumerate(indices):
        row = f'{where}: row {index}'
        read = partial(_labels, known=list(number_of), delimiter=delimiter)
        ignore = []
        if 'ignore' in batch and 'ignore' not in columns:
            ignore = read(batch['ignore'][position], class_names.get('ignore'), where=f"{row}: 'ignore'")
        if is_binary:
            states = {name: read_state(batch[name][position], f'{row}: {name!r}', *meanings) for name in columns}
            labels = [name for name, value in states.items() if value == 1]
            ignore += [name for name, value in states.items() if value == -1 and name not in ignore]
        else:
            value, place = batch[columns[0]][position], f'{row}: {columns[0]!r}'
            vectors = name_vector([value], list(number_of), place) if is_vector else None
            labels = vectors[0] if vectors else read(value, class_names.get(columns[0]), where=place)
        present, unknowns = encode(labels, ignore, number_of, row)
        result['labels'].append(present)
        result['ignore'].append(unknowns)
        result['area'].append([])
        result['image_id'].append(str(batch[image_id][position]) if image_id else f'{split}-{index}')
    return result


def _with_image(batch: dict[str, list], indices: list[int], rows: partial, image: str) -> dict[str, list]:
    return {'image': batch[image], **rows(batch, indices)}


def _labels(
    value: object, class_names: list[str] | None, known: list[str], delimiter: str | None, where: str
) -> list[str]:
    if class_names is None or value is None:
        if delimiter is None:  # of a stream, whose texts are not known in advance
            delimiter = find_delimiter(texts_of([value]), known, where)[0]
        return split_labels(value, delimiter, where)
    labels = []
    for number in value if isinstance(value, list) else [value]:
        if number is None or not 0 <= number < len(class_names):
            raise InputError(f'{where} is {number}, which is no label: its names are {len(class_names)}.')
        if class_names[number] in labels:
            raise InputError(f'{where} has the label {class_names[number]!r} twice.')
        labels.append(class_names[number])
    return labels
