"""Data sets of the Hub, or of local files that `datasets` reads by itself."""

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from itertools import chain

import datasets
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, LargeList, List, Value

from ..errors import InputError, unknown
from . import table
from .hub_source import Source, find_split
from .label_cells import (
    cells_note,
    check_names,
    check_settings,
    encode,
    has_comma_lists,
    is_label,
    labels_note,
    name_vector,
    read_state,
    split_labels,
)
from .label_delimiters import find_delimiter, texts_of
from .records import features, set_notes
from .table_splits import of_split

__all__ = ['load']

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
    source = Source(root)
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
    found = find_split(split, source.splits, root)
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
    is_vector = has_commas = False
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
        has_commas = has_comma_lists(chain.from_iterable(values.values()))
        notes[0] += cells_note(chain.from_iterable(values.values()))
        if label_names is None:
            label_names = _names_in(parts, texts, delimiter, has_commas, columns[0], root)
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
        has_commas=has_commas,
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


def _image_column(schema: Features, wanted: str | None, where: str) -> str:
    if wanted is not None and wanted not in schema:
        raise InputError(f'{where}: {unknown("image column", wanted, schema)}')
    images = [name for name, feature in schema.items() if _is_image(feature)]
    for name in [wanted] if wanted else ['image', 'file_name', *(images if len(images) == 1 else [])]:
        if name in images:
            return name
    what = f'{wanted!r} holds no images' if wanted else 'has no column of images, or several'
    raise InputError(f'{where}: {what}: data.image_column names it (images: {", ".join(images) or "none"}).')


def _is_image(feature: object) -> bool:
    if isinstance(feature, dict):
        return set(feature) == {'bytes', 'path'}
    return isinstance(feature, Image) or isinstance(feature, Value) and feature.dtype in ('binary', 'large_binary')


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


def _names_in(
    splits: dict[str, Dataset], columns: list[str], delimiter: str, has_commas: bool, column: str, root: str
) -> list[str]:
    """Names all labels of all splits, or training and validation would number them differently."""
    found = set()
    for split, dataset in splits.items():
        for name in set(columns) & set(dataset.features):
            for row, value in enumerate(chain.from_iterable(_batches(dataset, name))):
                found.update(split_labels(value, delimiter, f'{root}, split {split}: row {row}: {name!r}', has_commas))
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
    has_commas: bool,
    meanings: tuple[str, str],
    split: str,
    where: str,
) -> dict[str, list]:
    """Makes the columns of every data set but the images from a batch of rows."""
    result = {name: [] for name in OURS}
    for position, index in enumerate(indices):
        row = f'{where}: row {index}'
        read = partial(_labels, known=list(number_of), delimiter=delimiter, has_commas=has_commas)
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
    value: object, class_names: list[str] | None, known: list[str], delimiter: str | None, has_commas: bool, where: str
) -> list[str]:
    if class_names is None or value is None:
        if delimiter is None:  # of a stream, whose texts are not known in advance
            delimiter = find_delimiter(texts_of([value]), known, where)[0]
        return split_labels(value, delimiter, where, has_commas)
    labels = []
    for number in value if isinstance(value, list) else [value]:
        if number is None or not 0 <= number < len(class_names):
            raise InputError(f'{where} is {number}, which is no label: its names are {len(class_names)}.')
        if class_names[number] in labels:
            raise InputError(f'{where} has the label {class_names[number]!r} twice.')
        labels.append(class_names[number])
    return labels
