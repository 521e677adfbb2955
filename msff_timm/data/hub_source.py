"""Fetches data sets of the Hub, and opens folders that `datasets` reads, split by split."""

import ast
import copy
import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path, PurePosixPath

import datasets
import huggingface_hub
from datasets import Dataset, IterableDataset
from datasets.data_files import DataFilesDict
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.splits import SplitDict

from ..errors import InputError, NoSplitError, unknown
from .table_splits import standard_split

__all__ = ['Source', 'find_split']

ID = re.compile(r'(?P<path>[\w.-]+/[\w.-]+)(:(?P<config>[^@]+))?(@(?P<revision>.+))?')


class Source:
    """A data set of the Hub, or a folder, that is read split by split.

    Args:
        root: Id of a data set or path of a folder, as for `msff_timm.data.load`.
        config_name: Name of the configuration; None for the default.

    Attributes:
        is_local: True for a folder.
        splits: Names of the available splits.
        folder: Folder, relative to the data set, of a metadata file above the folders of the splits; None if there is
            no such file.

    Raises:
        InputError: The data set cannot be loaded.
    """

    def __init__(self, root: str, config_name: str | None = None):
        self.root, self.is_local = root, os.path.isdir(root)
        match = None if self.is_local else ID.fullmatch(root)
        if not self.is_local and (match is None or os.path.exists(root)):
            raise InputError(f'{root}: is neither a folder nor the id (ORG/NAME) of a Hub data set: check data.root.')
        if match and (config := match['config']):
            root = root.replace(f':{config}', '')
            raise InputError(f'{root}:{config}: set data.root to {root} and data.config_name to {config}.')
        self._path, self._revision = (root, None) if match is None else match.group('path', 'revision')
        key = hashlib.sha256(repr((root, config_name)).encode()).hexdigest()[:32]
        self._fetched = Path(datasets.config.HF_DATASETS_CACHE, 'msff_timm', 'hub', key)
        self._builder, self.folder, self._snapshot = None, None, None
        try:
            self._builder = datasets.load_dataset_builder(self._path, config_name, revision=self._revision)
        except Exception as e:  # three libraries and many formats raise nearly every type of error
            if not self._find_fetched(e):
                raise InputError(_reason(root, self.is_local, e)) from e
            return
        files = self._builder.config.data_files  # None if `datasets` found the data set in its cache
        if files and (ours := self._find_files(set(map(str, files)))):
            self._builder = datasets.load_dataset_builder(
                self._path, config_name, revision=self._revision, data_files=ours
            )
            files = self._builder.config.data_files
        self.splits = [str(name) for name in files or self._builder.info.splits or ()]
        if files and isinstance(self._builder, ImageFolder):
            self.folder = self._find_metadata()

    def _find_files(self, splits: set[str]) -> dict[str, list[str]] | None:
        """Finds `Train/`, `Val.parquet` etc.; `datasets` expects lower case.

        Returns:
            Files of each split; None if `datasets` has found all splits.
        """
        suffixes = {Path(str(file)).suffix for files in self._builder.config.data_files.values() for file in files}
        found, is_missed = {}, False
        for folder in ('', 'data'):
            for name, is_folder in self._list(folder):
                word = re.split(r'[-._ 0-9]', name)[0]
                split = standard_split(word)
                if split and (is_folder or Path(name).suffix in suffixes):
                    is_missed |= word != word.lower() and split not in map(standard_split, splits)
                    found.setdefault(split, []).append(str(PurePosixPath(folder, name, *(['**'] if is_folder else []))))
        return found if is_missed and 'train' in found else None

    def _list(self, folder: str) -> list[tuple[str, bool]]:
        """Lists the names in a folder, each with whether it is a folder."""
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
    def has_label_folders(self) -> bool:
        """Whether the folders of the images are their labels."""
        return isinstance(self._builder, ImageFolder)

    def read(self, split: str, streaming: bool) -> Dataset | IterableDataset:
        """Reads a split; fetches it first unless it is streamed."""
        try:
            if self._builder is None:
                dataset = _from_arrow(self._fetched / split)
                return dataset.to_iterable_dataset() if streaming else dataset
            if streaming:
                return self._builder.as_streaming_dataset(split=split)
            if self._has_separate_splits():
                return self._read_one(split)
            self._builder.download_and_prepare()
            return self._builder.as_dataset(split=split)
        except Exception as e:  # as in __init__
            raise InputError(_reason(self.root, self.is_local, e)) from e

    def _has_separate_splits(self) -> bool:
        """Returns whether a split can be read alone. If folders are labels, all splits determine their names."""
        files = self._builder.config.data_files  # None if `datasets` found the data set in its cache
        if not files or not isinstance(self._builder, ImageFolder):
            return bool(files)
        names = [{os.path.basename(file) for file in map(str, of_split)} for of_split in files.values()]
        return not any(found.isdisjoint(ImageFolder.METADATA_FILENAMES) for found in names)

    def _read_one(self, split: str) -> Dataset:
        """Fetches the files of one split into a folder of its own; `datasets` would fetch all splits."""
        builder = copy.deepcopy(self._builder)
        builder.config.data_files = DataFilesDict({split: self._builder.config.data_files[split]})
        if builder.info.splits:
            info = {split: builder.info.splits[split]} if split in builder.info.splits else {}
            builder.info.splits = SplitDict(info, dataset_name=builder.dataset_name) if info else None
        builder.info.download_size = None
        content = hashlib.sha256(builder.cache_dir.encode()).hexdigest()[:32]
        folder = self._fetched / content / split
        builder.download_and_prepare(output_dir=str(folder))
        return _from_arrow(folder)

    def _find_fetched(self, error: Exception) -> bool:
        """Finds what an earlier run has fetched if the Hub cannot be reached; returns whether it found anything."""
        is_offline = datasets.config.HF_HUB_OFFLINE or isinstance(error, ConnectionError)
        if self.is_local or not is_offline or isinstance(error, datasets.exceptions.DatasetNotFoundError):
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
        """Finds the folder of a metadata file above the folders of the splits, if no split has a file of its own.

        `datasets` ignores such a file; older versions assign all its rows to each split.
        """
        names = [self._relative(file) for files in self._builder.config.data_files.values() for file in files]
        metadata = Counter(name for name in names if os.path.basename(name) in ImageFolder.METADATA_FILENAMES)
        if 1 in metadata.values():
            return None
        above = sorted({str(folder) for name in names for folder in PurePosixPath(name).parents}, key=len)
        if self.is_local:
            return next((folder for folder in above if _has_metadata(Path(self.root, folder))), None)
        files = set(huggingface_hub.HfApi().list_repo_files(self._path, repo_type='dataset', revision=self._commit))
        return next((folder for folder in above if not files.isdisjoint(_metadata_of(folder))), None)

    def fetch_folder(self, split: str) -> str:
        """Fetches the images of a split and the metadata file above the splits; returns the folder of that file."""
        if self.is_local:
            return os.path.join(self.root, self.folder)
        if self._snapshot is None:
            files = self._builder.config.data_files[find_split(split, self.splits, self.root)]
            folders = {os.path.dirname(self._relative(file)) for file in files}
            patterns = [*_metadata_of(self.folder), *(f'{glob.escape(folder)}/*' for folder in folders)]
            try:
                self._snapshot = huggingface_hub.snapshot_download(
                    self._path, repo_type='dataset', revision=self._revision, allow_patterns=patterns
                )
            except Exception as e:  # as in __init__
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
    """Opens the Arrow files of a split that `datasets` has written to the folder of the same name."""
    parts = [*folder.glob(f'*-{folder.name}.arrow'), *folder.glob(f'*-{folder.name}-?????-of-?????.arrow')]
    return datasets.concatenate_datasets([Dataset.from_file(str(path)) for path in sorted(parts)])


def find_split(split: str, splits: Collection[str], root: str) -> str:
    """Returns the split of this name, or of another name that `datasets` accepts for it."""
    if split in splits:
        return split
    found = [
        name for name in splits if standard_split(split) is not None and standard_split(name) == standard_split(split)
    ]
    if len(found) > 1:
        raise InputError(f'{root}: both {found[0]} and {found[1]} mean the split {split}: choose one of them.')
    if not found:
        raise NoSplitError(f'{root}: {unknown("split", split, splits)}')
    return found[0]


def _reason(root: str, is_folder: bool, error: Exception) -> str:
    lines = [line.strip() for line in f'{error}'.splitlines() if line.strip()]
    reason = f'{type(error).__name__}: {lines[0].rstrip(".") if lines else "no details"}'
    names = re.search(
        r"(?:among the available configs|BuilderConfig '(.*)' not found. Available): (\[.*\])", f'{error}'
    )
    if names and names[1]:
        return f'{root}: {unknown("data.config_name", names[1], ast.literal_eval(names[2]))}'
    if names:
        configurations = ', '.join(ast.literal_eval(names[2]))
        return f'{root}: has several configurations ({configurations}): set data.config_name to one of them.'
    cause = error.__cause__
    if cause is not None and not isinstance(error, datasets.exceptions.DatasetNotFoundError):
        reason += f' ({type(cause).__name__}: {(str(cause).splitlines() or [""])[0].rstrip(".")})'
    if is_folder:
        return f'{root}: cannot be read as a data set: {reason}. Add files such as train-00000-of-00001.parquet.'
    if datasets.config.HF_HUB_OFFLINE:
        fix = 'unset HF_HUB_OFFLINE, or load the data set once while online'
    elif isinstance(error, datasets.exceptions.DatasetNotFoundError):
        fix = 'check the id in data.root, request access on its page, or log in (hf auth login)'
    elif 'scripts are no longer supported' in reason:
        fix = 'scripts of data sets are never run: convert it to Parquet'
    elif isinstance(error, ConnectionError):
        fix = 'check the network and HF_ENDPOINT, or load the data set once while online'
    else:
        fix = 'check the files of the data set'
    return f'{root}: cannot be loaded from {datasets.config.HF_ENDPOINT}: {reason}; {fix}.'
