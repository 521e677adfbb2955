"""Data sets of the Hub, or of local files that `datasets` reads by itself."""

import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, List, Value

from ..errors import InputError, unknown
from .records import features
from .table import check_names, encode, match_names, split_labels, state

__all__ = ['load']

ID = re.compile(r'(?P<path>[\w.-]+/[\w.-]+)(@(?P<revision>.+))?')
ALIASES = {'validation': ('validation', 'val')}
ID_COLUMNS = ('image_id', 'id')
NOT_LABELS = ('split', 'ignore', 'area', *ID_COLUMNS)
OURS = ('labels', 'ignore', 'area', 'image_id')


def load(
    split: str,
    root: str | None,
    image_column: str | None = None,
    label_columns: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    label_delimiter: str = '|',
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Loads one split of a data set of the Hub; `msff_timm.data.load` tells the arguments and the columns.

    Labels are a `ClassLabel` or text, one or a list of them, or a column of 1, 0 and -1 or null for each label.
    Pictures are named by `image_id` or `id` where there is such a column, else by split and number of their row
    (`train-7`), in a stream the number within what the process reads.

    Args:
        root: `organisation/name` or `organisation/name@revision`, or a folder.

    Raises:
        InputError: It cannot be had, or does not hold what it should; in a stream a bad row raises where it is read.
    """
    if not root:
        raise InputError('hub needs data.root: the id of a data set on the Hub, or a folder of Parquet files.')
    if not label_delimiter:
        raise InputError('data.label_delimiter is empty: give the text between two labels.')
    check_names('data.label_names', label_names)
    check_names('data.label_columns', label_columns)
    splits = _load(root, streaming)
    found = next((alias for alias in ALIASES.get(split, (split,)) if alias in splits), None)
    if found is None:
        raise InputError(f'{root}: {unknown("split", split, splits)}')
    dataset, where = splits[found], f'{root}, split {found}'
    if dataset.features is None:
        raise InputError(f'{root}: its columns are not known before it is read: write Parquet, or do not stream it.')
    image = _image_column(dataset.features, image_column, where)
    columns = _label_columns(dataset.features, image, label_columns, where)
    is_binary = len(columns) > 1 or columns != ['labels'] and _is_number(dataset.features[columns[0]])
    if is_binary:
        check_names(where, columns)
        label_names = match_names(columns, label_names, where)
    elif label_names is None:
        label_names = _names_of(dataset.features[columns[0]])
    if label_names is None:
        if streaming:
            raise InputError(f'{root}: the labels of a stream are not known in advance: set data.label_names.')
        label_names = _union(splits, columns[0], label_delimiter, root)
    if not streaming and not len(dataset):
        raise InputError(f'{where}: holds no row.')
    image_id = next((name for name in ID_COLUMNS if name in dataset.features and name not in (image, *columns)), None)
    used = [*columns, *(['ignore'] if 'ignore' in dataset.features and 'ignore' not in columns else [])]
    rows = partial(
        _rows,
        columns=columns,
        is_binary=is_binary,
        class_names={name: names for name in used if (names := _names_of(dataset.features[name]))},
        image_id=image_id,
        number_of={name: number for number, name in enumerate(label_names)},
        delimiter=label_delimiter,
        split=found,
        where=where,
    )
    schema = features(list(label_names))
    inputs = used + ([image_id] if image_id else [])
    if not streaming:
        pictures = dataset.select_columns([image]).rename_columns({image: 'image'}).cast_column('image', Image())
        # Beside the pictures, not with them: what `map` returns is written to the cache once more.
        rest = dataset.select_columns(inputs).map(
            rows,
            batched=True,
            with_indices=True,
            remove_columns=inputs,
            features=Features({name: schema[name] for name in OURS}),
        )
        return datasets.concatenate_datasets([pictures, rest], axis=1)
    stream = dataset.select_columns([image, *inputs]).cast_column(image, Image(decode=False))
    mapped = stream.map(
        partial(_with_image, rows=rows, image=image),
        batched=True,
        with_indices=True,
        remove_columns=[image, *inputs],
    )
    # Not by `map`, which takes what it returns for decoded.
    return mapped.cast(schema)


def _load(root: str, streaming: bool) -> dict[str, Dataset | IterableDataset]:
    """Loads all splits."""
    is_folder = os.path.isdir(root)
    match = None if is_folder else ID.fullmatch(root)
    if not is_folder and (match is None or os.path.exists(root)):
        raise InputError(f'{root}: is neither a folder nor an id organisation/name of the Hub: check data.root.')
    path, revision = (root, None) if is_folder else match.group('path', 'revision')
    try:
        return datasets.load_dataset(path, revision=revision, streaming=streaming)
    except Exception as e:  # of three libraries and any format: whatever it is, the data set cannot be had
        raise InputError(_reason(root, is_folder, e)) from e


def _reason(root: str, is_folder: bool, error: Exception) -> str:
    lines = [line.strip() for line in f'{error}'.splitlines() if line.strip()]
    reason = f'{type(error).__name__}: {lines[0].rstrip(".") if lines else "no more is known"}'
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


def _label_columns(schema: Features, image: str, wanted: Sequence[str] | None, where: str) -> list[str]:
    for name in wanted or ():
        if name not in schema or name == image:
            raise InputError(f'{where}: {unknown("label column", name, [other for other in schema if other != image])}')
    if wanted:
        columns = list(wanted)
    elif 'labels' in schema:
        columns = ['labels']
    else:
        columns = [name for name in schema if name not in (image, *NOT_LABELS)]
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


def _names_of(feature: object) -> list[str] | None:
    inner = feature.feature if isinstance(feature, List) else feature
    return inner.names if isinstance(inner, ClassLabel) else None


def _union(splits: DatasetDict, column: str, delimiter: str, root: str) -> list[str]:
    """Names all labels of all splits, or training and validation would number them differently."""
    found = set()
    for split, dataset in splits.items():
        for name in {column, 'ignore'} & set(dataset.features):
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
    class_names: dict[str, list[str]],
    image_id: str | None,
    number_of: dict[str, int],
    delimiter: str,
    split: str,
    where: str,
) -> dict[str, list]:
    """Makes the columns of every data set but the pictures from a batch of rows."""
    result = {name: [] for name in OURS}
    for position, index in enumerate(indices):
        row = f'{where}: row {index}'
        ignore = []
        if 'ignore' in batch and 'ignore' not in columns:
            ignore = _labels(batch['ignore'][position], class_names.get('ignore'), delimiter, f"{row}: 'ignore'")
        if is_binary:
            states = {name: state(batch[name][position], f'{row}: {name!r}') for name in columns}
            labels = [name for name, value in states.items() if value == 1]
            ignore += [name for name, value in states.items() if value == -1 and name not in ignore]
        else:
            value = batch[columns[0]][position]
            labels = _labels(value, class_names.get(columns[0]), delimiter, f'{row}: {columns[0]!r}')
        present, unknowns = encode(labels, ignore, number_of, row)
        result['labels'].append(present)
        result['ignore'].append(unknowns)
        result['area'].append([])
        result['image_id'].append(str(batch[image_id][position]) if image_id else f'{split}-{index}')
    return result


def _with_image(batch: dict[str, list], indices: list[int], rows: partial, image: str) -> dict[str, list]:
    return {'image': batch[image], **rows(batch, indices)}


def _labels(value: object, class_names: list[str] | None, delimiter: str, where: str) -> list[str]:
    if class_names is None or value is None:
        return split_labels(value, delimiter, where)
    labels = []
    for number in value if isinstance(value, list) else [value]:
        if number is None or not 0 <= number < len(class_names):
            raise InputError(f'{where} is {number}, which is no label: its names are {len(class_names)}.')
        if class_names[number] in labels:
            raise InputError(f'{where} has the label {class_names[number]!r} twice.')
        labels.append(class_names[number])
    return labels
