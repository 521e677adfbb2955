"""Label errors and near-duplicate images of a data set, found by a model that was not trained on its labels."""

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import datasets
import numpy as np
import timm
import torch
import torch.nn as nn
from accelerate import Accelerator
from tqdm import tqdm

import msff_timm.data

from .. import hub
from ..data.inspect import load_splits
from ..data.inspect.near_duplicates import SIMILAR, content_digest, group_similar, layout
from ..data.samples import Samples
from ..data.transforms import eval_transform
from ..errors import InputError, one_line
from ..files import replace_file
from ..inference.embeddings import embed
from .config import DataConfig, ModelConfig
from .evaluate import load_model
from .features import digest
from .label_issues import LabelIssue, find_label_issues, out_of_fold
from .loaders import make_loader, num_cores
from .report import read_settings
from .run_data import load_data
from .run_model import make_model

__all__ = ['Duplicates', 'Issues', 'Source', 'find_issues', 'open_data', 'open_run']

BATCH_SIZE = 32
MOST = 1000
WHOLE_IMAGE = {'crop_pct': 1.0, 'crop_mode': 'squash'}  # labels may be at the edges


class Source:
    """Images with labels, and a model that was not trained on these labels.

    Args:
        splits: Data sets of `msff_timm.data.load` by the names of the splits.
        model: Model that computes embeddings, in evaluation mode.
        model_name: Name of the model, for messages.
        data_config: Preprocessing of the model.

    Attributes:
        label_names: Label names.
        places: Split and row in it of each image; images are numbered through all splits.
        image_ids: Name of each image in its split.
        targets: Targets (N, K).

    Raises:
        InputError: The splits have different labels.
    """

    def __init__(self, splits: dict[str, datasets.Dataset], model: nn.Module, model_name: str, data_config: dict):
        self.splits = splits
        self.model = model
        self.model_name = model_name
        self.data_config = data_config | WHOLE_IMAGE
        names = {split: msff_timm.data.label_names(dataset) for split, dataset in splits.items()}
        first = next(iter(names))
        self.label_names = names[first]
        for split in names:
            if names[split] != self.label_names:
                raise InputError(f'the labels of {split} differ from those of {first}: give both the same label names.')
        transform = eval_transform(self.data_config)
        self.samples = {split: Samples(dataset, transform, skip_unreadable=True) for split, dataset in splits.items()}
        self.places = [(split, row) for split, dataset in splits.items() for row in range(len(dataset))]
        self.image_ids = [image_id for dataset in splits.values() for image_id in dataset['image_id'][:]]
        self.targets = np.concatenate([samples.targets for samples in self.samples.values()])

    def row(self, number: int) -> dict:
        """Returns the row of an image, with the path or content of its file."""
        split, row = self.places[number]
        return self.samples[split].dataset[row]

    def labels(self, number: int) -> list[str]:
        """Returns the names of the labels that an image is given."""
        return [self.label_names[k] for k in np.flatnonzero(self.targets[number] == 1)]


def open_data(
    name: str, splits: Sequence[str] | None, model: str | None, image_size: int | None, **loading: Any
) -> tuple[Source, list[str]]:
    """Loads splits of a data set, and a model.

    Args:
        name: Name of the data set, as for `msff_timm.data.load`.
        splits: Names of the splits; None for those of `train` and `validation` that exist.
        model: Name of the model, as for `msff_timm.load`; None for the default model.
        image_size: Side of the model's input in pixels; None for the model's own.
        **loading: Further arguments of `msff_timm.data.load`.

    Returns:
        The source, and the error message of each split that could not be loaded.

    Raises:
        InputError: No split or one of `splits` does not load, or the model does not.
    """
    model = model or hub.DEFAULT_MODEL
    loaded, data_config = load_model(model, image_size)
    found, not_loaded = load_splits(name, splits, image_size=data_config['input_size'][-1], **loading)
    return Source(found, loaded, model, data_config), not_loaded


def open_run(folder: str | Path, model: str | None, image_size: int | None) -> Source:
    """Loads both splits of a run, and the weights that it started from: the trained ones have learnt the labels.

    Args:
        folder: Folder of the run.
        model: Name of another model; None for the weights that the run started from, or, if these were random, for the
            default model.
        image_size: Side of the model's input in pixels; None for the model's own.

    Raises:
        InputError: The folder holds no settings, or data or model cannot be loaded.
    """
    settings = read_settings(Path(folder))
    if settings is None:
        raise InputError(f'{folder}: has no settings.yaml; name the folder of a run, or a data set.')
    data, start = DataConfig(**settings['data']), ModelConfig(**settings['model'])
    began = start.init_from or start.backbone_from
    if model is None and began is None and start.backbone_pretrained:
        model = f"{start.name} with timm's weights"
        loaded, _ = make_model(start, ['any'], resumed=False)
        data_config = timm.data.resolve_model_data_config(loaded, {'img_size': image_size or data.image_size})
    else:
        chosen, model = model, model or began or hub.DEFAULT_MODEL
        try:
            loaded, data_config = load_model(model, image_size)
        except InputError as e:
            hint = '' if chosen else f' {folder} started from it: --model chooses another model.'
            raise InputError(f'{e}{hint}') from None
    if data.streaming:  # the number of images in an epoch is not that of the split
        data.streaming, data.train_size = False, None
    train_set, eval_set, *_ = load_data(data, Accelerator())
    return Source({data.train_split: train_set, data.eval_split: eval_set}, loaded, model, data_config)


@dataclass
class Duplicates:
    """Images that are the same or nearly so.

    Attributes:
        images: Numbers of the images.
        similarities: Cosine similarity of each to the first one.
        is_exact: True if all have the same content.
        is_across: True if they are in several splits.
    """

    images: list[int]
    similarities: list[float]
    is_exact: bool
    is_across: bool


@dataclass
class Issues:
    """Label errors and duplicates of a data set.

    Attributes:
        labels: Label issues, the likeliest first.
        num_labels: Number of label issues of each kind, also of those that are not listed.
        duplicates: Groups of duplicates: those across splits first, then the largest.
        unreadable: Numbers of the images that cannot be read, which are left out.
    """

    labels: list[LabelIssue]
    num_labels: dict[str, int]
    duplicates: list[Duplicates]
    unreadable: list[int]


def find_issues(
    source: Source,
    cache: Path,
    device: torch.device,
    workers: int = 2,
    similarity: float = SIMILAR,
    most: int = MOST,
) -> Issues:
    """Finds likely label errors and near-duplicate images.

    Args:
        source: Images, labels and model.
        cache: File for the embeddings; another call with the same images and model reads them from there.
        device: Device to compute on.
        workers: Number of worker processes that load images.
        similarity: Least cosine similarity of near-duplicates.
        most: Highest number of label issues of each kind.

    Raises:
        InputError: No image can be read, or the file cannot be written.
    """
    embeddings, layouts = cached_embeddings(source, cache, device, workers)
    is_unreadable = np.array(~embeddings.any(1))
    groups = group_similar(embeddings, layouts, similarity)
    targets = np.where(is_unreadable[:, None], -1, source.targets)
    logits = out_of_fold(embeddings, targets, groups)
    logits[is_unreadable] = -np.inf  # also where their labels are unannotated
    labels, num_labels = find_label_issues(logits, targets, most)
    order = np.argsort(groups, kind='stable')
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    duplicates = [
        _describe_group(source, images, embeddings) for images in np.split(order, starts[1:]) if len(images) > 1
    ]
    duplicates.sort(key=lambda group: (not group.is_across, -len(group.images)))
    return Issues(labels, num_labels, duplicates, np.flatnonzero(is_unreadable).tolist())


def _describe_group(source: Source, images: np.ndarray, embeddings: np.ndarray) -> Duplicates:
    numbers = images.tolist()
    contents = {content_digest(source.row(number)) for number in numbers}
    splits = {source.places[number][0] for number in numbers}
    similarities = (embeddings[images] @ embeddings[images[0]]).tolist()
    return Duplicates(numbers, similarities, len(contents) == 1, len(splits) > 1)


def cached_embeddings(source: Source, cache: Path, device: torch.device, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the embeddings (N, D) and layouts (N, 256) of all images, 0 for those that cannot be read.

    They are computed unless the file holds those of the same images and model.

    Raises:
        InputError: No image of a split can be read, or the file cannot be written.
    """
    key = _key(source)
    try:
        with np.load(cache) as found:
            if found['key'] == key:
                return found['embeddings'], found['layouts']
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass  # it is missing, or damaged
    embeddings, layouts = _embed_all(source, device, workers)
    try:
        with replace_file(cache) as temporary:
            np.savez(temporary, key=key, embeddings=embeddings, layouts=layouts)
    except OSError as e:
        raise InputError(f'{cache}: cannot be written ({one_line(e)}).') from None
    return embeddings, layouts


def _key(source: Source) -> str:
    """Returns a digest of the model, its preprocessing and the images: their content, or path, size and time."""
    found = hashlib.sha256(f'{digest(source.model)} {source.data_config}'.encode())
    for split, samples in source.samples.items():
        for row in samples.dataset:
            image = row['image']
            if not isinstance(image, dict):  # drawn from a seed
                found.update(f'{split} {row["image_id"]}'.encode())
            elif image['bytes'] is not None:
                found.update(image['bytes'])
            else:
                stat = os.stat(image['path']) if os.path.exists(image['path']) else None
                found.update(f'{image["path"]} {stat and (stat.st_size, stat.st_mtime_ns)}'.encode())
    return found.hexdigest()


def _embed_all(source: Source, device: torch.device, workers: int) -> tuple[np.ndarray, np.ndarray]:
    if device.type == 'cpu':
        torch.set_num_threads(max(1, num_cores() - workers))
    model = source.model.eval().to(device)
    embeddings, layouts = [], []
    with tqdm(desc='embeddings', total=len(source.places), unit='img', dynamic_ncols=True, file=sys.stderr) as bar:
        for samples in source.samples.values():
            start = 0
            for batch in make_loader(samples, BATCH_SIZE, workers):
                index = batch['index'].numpy()
                is_own = index == np.arange(start, start + len(index))  # else another image is in its place
                embeddings.append(embed(model, batch['image']).cpu().numpy() * is_own[:, None])
                layouts.append(layout(batch['image']).numpy() * is_own[:, None])
                start += len(index)
                bar.update(len(index))
    return np.concatenate(embeddings), np.concatenate(layouts)
