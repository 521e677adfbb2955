"""Measures loading of made-up tables of many labels: a column for each label, or delimited text, in CSV and Parquet."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench_common import check_above_0, check_at_least, in_own_process
from own_process import load_table

BLOCK = 1000  # rows written at a time


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--num_images', type=int, default=100_000, help='number of rows')
    parser.add_argument('--num_classes', type=int, default=1000, help='number of labels')
    parser.add_argument('--labels_per_image', type=float, default=20, help='mean number of labels of an image')


def run(options: argparse.Namespace) -> dict:
    """Measures each table once, in a process of its own.

    `seconds` depends on what else the machine does, `cpu_seconds` hardly.
    """
    check_at_least(options, num_images=1, num_classes=1)
    check_above_0(options, 'labels_per_image')
    generator = np.random.default_rng(0)
    share = options.labels_per_image / options.num_classes
    states = generator.random((options.num_images, options.num_classes), dtype=np.float32) < share
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        names = [f'{number}.jpg' for number in range(options.num_images)]
        (Path(folder) / 'images').mkdir()
        for name in names:
            Path(folder, 'images', name).touch()
        for kind, write in WRITERS.items():
            root = Path(folder, kind.replace(' ', '_'))
            root.mkdir()
            file = write(root, names, states)
            environment = {'HF_DATASETS_CACHE': str(Path(folder, 'cache'))}
            found[kind] = in_own_process(load_table, str(root), str(Path(folder, 'images')), **environment)
            found[kind]['file_mib'] = file.stat().st_size / 2**20
            assert found[kind]['labels'] == states.sum()
            file.unlink()
            print(
                f'{kind:16} {found[kind]["seconds"]:7.1f} s, {found[kind]["cpu_seconds"]:7.1f} s of the processor, peak'
                f' {found[kind]["peak_mib"]:.0f} MiB, before loading {found[kind]["peak_mib_before"]:.0f} MiB,'
                f' file {found[kind]["file_mib"]:.0f} MiB'
            )
    shape = {'num_images': options.num_images, 'num_classes': options.num_classes, 'labels': int(states.sum())}
    return {**shape, 'tables': found}


def _label_names(states: np.ndarray) -> list[str]:
    return [f'label {number}' for number in range(states.shape[1])]


def _write_lines(path: Path, head: str, names: list[str], line: Callable[[int], str]) -> Path:
    with open(path, 'w') as file:
        file.write(head + '\n')
        file.writelines(f'{name},{line(row)}\n' for row, name in enumerate(names))
    return path


def _write_columns(root: Path, names: list[str], states: np.ndarray, absent: str = '0') -> Path:
    head = ','.join(['image', *_label_names(states)])
    return _write_lines(root / 'train.csv', head, names, lambda row: ','.join(np.where(states[row], '1', absent)))


def _write_blank(root: Path, names: list[str], states: np.ndarray) -> Path:
    return _write_columns(root, names, states, absent='')


def _write_text(root: Path, names: list[str], states: np.ndarray) -> Path:
    labels = np.array(_label_names(states))
    return _write_lines(root / 'train.csv', 'image,labels', names, lambda row: '|'.join(labels[states[row]]))


def _write_parquet(root: Path, names: list[str], states: np.ndarray) -> Path:
    columns = dict(zip(_label_names(states), states.astype(np.int8).T, strict=True))
    pq.write_table(pa.table({'image': names, **columns}), root / 'train.parquet')
    return root / 'train.parquet'


def _write_lists(root: Path, names: list[str], states: np.ndarray) -> Path:
    labels = np.array(_label_names(states))
    cells = pa.array([labels[row].tolist() for row in states], pa.list_(pa.string()))
    pq.write_table(pa.table({'image': names, 'labels': cells}), root / 'train.parquet')
    return root / 'train.parquet'


WRITERS = {
    'columns': _write_columns,
    'columns, blank': _write_blank,
    'text': _write_text,
    'parquet columns': _write_parquet,
    'parquet lists': _write_lists,
}
