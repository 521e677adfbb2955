"""Evaluates a trained model: `accelerate launch -m msff_timm.training.evaluate --model local-dir:FOLDER`."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
import torch.nn as nn
from accelerate import Accelerator
from torch.nn.functional import logsigmoid

import msff_timm.data

from .. import hub
from ..data import voc
from ..data.samples import Samples
from ..data.table_splits import standard_split
from ..data.transforms import eval_transform
from ..errors import InputError, NoSplitError, one_line
from ..files import replace_file
from ..inference.logits import check_finite
from ..labels import describe_matches, get_calibration, get_label_names, match_labels
from ..results import Results, shorten_path
from .commands import environment, run_command
from .data_config import EvalDataConfig
from .evaluate_config import EvaluateConfig
from .evaluator import FOLDS, compute_metrics, fit_thresholds, measure_calibration, score
from .identity import digest
from .loaders import make_loader, share_cores
from .parsing import parse
from .report import describe, describe_calibration, describe_thresholds, describe_top


def main() -> None:
    config = parse(EvaluateConfig, sys.argv[1:])
    accelerator = Accelerator()
    share_cores(accelerator, config.data.workers)
    made_with = environment(accelerator)
    if line := config.data.recognise():
        accelerator.print(line)

    # Model, images, and the labels that they share
    model, data_config = load_model(config.model, config.image_size)
    known = get_label_names(model)
    with accelerator.main_process_first():  # the other processes read its cache
        data, dataset, lines = load_data(config.data, known, data_config['input_size'][-1], model.held_out)
    for line in msff_timm.data.notes(dataset) + lines:
        accelerator.print(line)
    num_classes: Any = model.num_classes
    labels = share_labels(config.model, num_classes, known, msff_timm.data.label_names(dataset))
    check_labels(config, labels)
    for line in describe_matches(labels.renamed):
        accelerator.print(line)
    if labels.left_out:
        left_out, total = len(labels.left_out), len(labels.names) + len(labels.left_out)
        accelerator.print(f'{config.model} lacks {left_out} of the {total} labels; left out: {some(labels.left_out)}.')
    threshold = chosen_threshold(config, model, labels)

    # Scores
    samples = Samples(dataset, eval_transform(data_config))
    if labels.left_out:
        samples.targets = samples.targets[:, labels.rows]
        samples.areas = None if samples.areas is None else samples.areas[:, labels.rows]
    samples.targets = data.without_ignored(samples.targets, labels.names)
    if config.fit_thresholds and len(dataset) < FOLDS:
        raise InputError(
            f'fit_thresholds is {config.fit_thresholds}: {len(dataset)} images are too few; use at least {FOLDS}.'
        )
    if not config.submission:
        if warning := data.check_labels(samples.targets, labels.names, data.split, 'data.split'):
            accelerator.print(warning)
    loader = accelerator.prepare(make_loader(samples, config.batch_size, data.workers))
    scorer = Scorer(model, labels.columns, config.flip).to(accelerator.device)
    scored = score(accelerator, scorer, loader)
    image_ids, scores = dataset['image_id'][:], scored.arrays(len(dataset))['scores']
    if config.scores and accelerator.is_main_process:
        source = {'model': shorten_path(config.model), 'data': data.definition(data.split), 'flip': config.flip}
        with reporting_faults(config.scores):
            write_scores(config.scores, image_ids, scores, labels.names, source)
    if config.submission:
        if accelerator.is_main_process:
            assert data.root is not None
            voc.write_submission(config.submission, image_ids, scores, labels.names)
            voc.check_submission(config.submission, data.root)
        accelerator.print(f'{config.submission}: {len(dataset)} images of voc2012 test, 20 classes, comp2.')
        accelerator.end_training()
        return

    # Metrics
    options = {'ap': config.ap, 'threshold': threshold, 'bootstrap': config.bootstrap, 'top_k': config.top_k}
    metrics = compute_metrics(scored, len(dataset), **options)
    results = Results.from_metrics(
        metrics,
        labels.names,
        threshold,
        model=config.model,
        data=data.definition(data.split),
        input_size=list(data_config['input_size']),
        flip=config.flip,
        labels_left_out=labels.left_out,
        label_map=labels.renamed,
        num_processes=accelerator.num_processes,
        mixed_precision=accelerator.mixed_precision,
        config=asdict(config),
        **made_with,
    )
    accelerator.print(f'{config.model} on {data.title or data.name} {data.split}: {describe(results)}')
    accelerator.print(describe_top(results.top))
    if config.fit_thresholds:
        results.thresholds, calibration = fit_thresholds(
            scored, data.definition(data.split), str(config.fit_thresholds)
        )
    else:
        own = get_calibration(model)
        calibration = measure_calibration(scored, own and [[v[k] for k in labels.columns] for v in own])
    results.calibration = calibration
    if calibration:
        accelerator.print(describe_calibration(calibration))
    if accelerator.is_main_process:
        if fitted := results.thresholds:
            print(describe_thresholds(fitted, labels.names))
            for key in ('per_class', 'temperatures', 'biases'):
                fitted[key] = [fitted[key][k] for k in np.argsort(labels.columns)]  # as the logits
            for key in ('unmet', 'too_rare'):
                fitted[key] = sorted(labels.columns[k] for k in fitted[key])
            print(f'Thresholds, temperatures and biases stored in {hub.set_thresholds(config.model, fitted)}.')
        if config.output:
            with reporting_faults(config.output):
                results.to_json(config.output)
    accelerator.end_training()


def load_model(name: str, image_size: int | None) -> tuple[nn.Module, dict]:
    """Loads a model and its preprocessing.

    Args:
        name: Name of the model, as `msff_timm.hub.load` takes it.
        image_size: Side of the input in pixels; None for the model's own.

    Raises:
        InputError: The model cannot be loaded, or does not accept images of that size.
    """
    model = hub.load(name)
    if image_size is None:
        return model, timm.data.resolve_input_data_config(model)
    cfg: Any = model.pretrained_cfg
    if cfg.get('fixed_input_size') and image_size != cfg['input_size'][-1]:
        model = hub.load(name, img_size=image_size)  # position embeddings are resampled on loading
    data_config = timm.data.resolve_input_data_config(model, {'img_size': image_size})
    try:
        with torch.inference_mode():
            model(torch.zeros(1, *data_config['input_size']))
    except (RuntimeError, ValueError, AssertionError) as e:
        raise InputError(f'image_size is {image_size}: {name} does not accept that size ({one_line(e)}).') from e
    return model, data_config


def load_data(
    data: EvalDataConfig, known: Sequence[str] | None, image_size: int, held_out: Any
) -> tuple[EvalDataConfig, datasets.Dataset, list[str]]:
    """Loads the images: those of a split, or, if there is no validation split, those that are held out of `train`.

    Args:
        data: Settings of the data.
        known: Label names of the model; None if it has none.
        image_size: Side of the images of `scenes`.
        held_out: Images that the model's run held out, see `RunData.held_out`.

    Returns:
        The settings with the share that is held out, the images, and lines on the latter.

    Raises:
        InputError: The images cannot be loaded, or nothing determines which ones are held out.
    """
    try:
        dataset = load_known(data, known, lambda data: data.load(data.split, data.size, image_size))
        return replace(data, validation=None), dataset, []
    except NoSplitError as e:
        if standard_split(data.split) != 'validation':
            raise
        share, error = data.validation, e
    if share is None and isinstance(held_out, dict):
        share = held_out.get('share')
    if not isinstance(share, float):
        raise data.explain_no_validation(error)
    is_chosen, data = data.validation is not None, replace(data, validation=share)
    data.check_source()  # the share may be from a downloaded file
    dataset = load_known(data, known, lambda data: data.hold_out(image_size)[1])
    lines = [data.describe_held_out(dataset)]
    if not isinstance(held_out, dict) or held_out.get('images') != digest(dataset['image_id'][:]):
        if not is_chosen:
            raise InputError(
                f'{error} The model held out {share:g} of its training images, but not these: the data have changed, or'
                ' are others. Set data.validation to hold out images anyway.'
            )
        lines.append(
            'warning: the model did not hold out these images: if it was trained on them, metrics are too high.'
        )
    return data, dataset.select(range(min(data.size or len(dataset), len(dataset)))), lines


def load_known(
    data: EvalDataConfig, known: Sequence[str] | None, load: Callable[[EvalDataConfig], datasets.Dataset]
) -> datasets.Dataset:
    """Loads images. Labels that the data do not define are the model's, if the model has all that occur."""
    if known and data.name in ('table', 'folder', 'folders', 'hub', 'label_studio') and data.label_names is None:
        try:
            return load(replace(data, label_names=list(known)))
        except InputError:  # other labels or columns occur; any other error occurs again below
            pass
    return load(data)


@dataclass(frozen=True)
class SharedLabels:
    """The labels that a data set and a model share.

    Attributes:
        names: Label names in the order of the data set.
        rows: Indices of the labels in the data set.
        columns: Indices of the labels in the model's logits.
        renamed: Name in the model of each label that has another name there.
        left_out: Labels of the data set that the model lacks.
        unused: Labels of the model that the data set lacks.
    """

    names: list[str]
    rows: list[int]
    columns: list[int]
    renamed: dict[str, str]
    left_out: list[str]
    unused: list[str]


def share_labels(name: str, num_classes: int, known: Sequence[str] | None, label_names: Sequence[str]) -> SharedLabels:
    """Matches the labels of a data set and of a model by name.

    Args:
        name: Name of the model.
        num_classes: Number of logits of the model.
        known: Label names of the model; without names, the number of logits must match.
        label_names: Label names of the data set.

    Raises:
        InputError: They share no label, or the model has no names and another number of logits.
    """
    if not known:
        if num_classes != len(label_names):
            raise InputError(
                f'{name}: has {num_classes} labels without names, and the data have {len(label_names)}; add label_names'
                ' to its config.json to evaluate it on other labels.'
            )
        known = label_names
    matched = match_labels(known, label_names)
    if not matched:
        raise InputError(f'{name}: has none of the labels of the data ({some(label_names)}), only {some(known)}.')
    return SharedLabels(
        names=list(matched),
        rows=[label_names.index(new) for new in matched],
        columns=[known.index(old) for old in matched.values()],
        renamed={new: old for new, old in matched.items() if new != old},
        left_out=[label for label in label_names if label not in matched],
        unused=[label for label in known if label not in matched.values()],
    )


def some(names: Sequence[str], most: int = 10) -> str:
    """Returns the first names as text."""
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '')


def check_labels(config: EvaluateConfig, labels: SharedLabels) -> None:
    """Checks that the shared labels are enough for the outputs of an evaluation.

    Raises:
        InputError: A submission or thresholds need more labels, or a label has the name of a column.
    """
    if config.submission and labels.left_out:
        raise InputError(
            f"submission is {config.submission}: it needs VOC's 20 labels, and {config.model} lacks"
            f' {some(labels.left_out)}.'
        )
    if config.fit_thresholds and labels.unused:
        raise InputError(
            f'fit_thresholds is {config.fit_thresholds}: each label of {config.model} needs a threshold, and the data'
            f' lack {some(labels.unused)}.'
        )
    if config.scores and 'image_id' in labels.names:
        raise InputError(f'scores is {config.scores}: a label is named image_id, like the column of the images.')


def chosen_threshold(config: EvaluateConfig, model: nn.Module, labels: SharedLabels) -> float | list[float]:
    """Returns the threshold of the metrics: one number, or the model's own for each label."""
    if config.threshold is not None:
        return config.threshold
    own: Any = model.thresholds
    if own is None:
        raise InputError(
            f'threshold is null: {config.model} has no thresholds of its own; set threshold to a number, or'
            ' fit_thresholds to true.'
        )
    return [own[column] for column in labels.columns]


class Scorer(nn.Module):
    """A model whose logits are selected, and averaged over mirror images.

    Args:
        model: Model from images (B, C, H, W) to logits (B, K).
        columns: Indices of the labels to return.
        flip: True for the logit of the mean probability of each image and its mirror image.
    """

    def __init__(self, model: nn.Module, columns: Sequence[int], flip: bool):
        super().__init__()
        self.model = model
        self.columns = list(columns)
        self.flip = flip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Computes the selected logits (B, n) of images (B, C, H, W)."""
        logits = self.model(images)[:, self.columns].float()
        check_finite(self.model, logits)
        if not self.flip:
            return logits
        mirrored = self.model(images.flip(-1))[:, self.columns].float()
        # Logarithms of the sums of p and of 1 - p are exact near 0 and 1, too.
        present = torch.logaddexp(logsigmoid(logits), logsigmoid(mirrored))
        return present - torch.logaddexp(logsigmoid(-logits), logsigmoid(-mirrored))


def write_scores(
    path: str, image_ids: Sequence[str], scores: np.ndarray, label_names: Sequence[str], source: dict
) -> None:
    """Writes a Parquet file of `image_id` and a column of 32-bit floats for each label.

    Args:
        path: File to write.
        image_ids: Names of the images.
        scores: Probabilities (N, K).
        label_names: Label names in the order of the columns.
        source: Model and data, stored as metadata of the file.
    """
    columns = [pa.array(image_ids, pa.string()), *(pa.array(column, pa.float32()) for column in scores.T)]
    table = pa.table(columns, ['image_id', *label_names]).replace_schema_metadata({'msff_timm': json.dumps(source)})
    with replace_file(path) as temporary:
        pq.write_table(table, temporary)


@contextmanager
def reporting_faults(path: str) -> Iterator[None]:
    """Converts an error of writing a file, e.g. on a full disk, to an InputError."""
    try:
        yield
    except OSError as e:
        raise InputError(f'{Path(path)}: cannot be written ({one_line(e)}).') from None


if __name__ == '__main__':
    run_command(main)
