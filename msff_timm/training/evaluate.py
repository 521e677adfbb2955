"""Measures a trained model: `accelerate launch train/evaluate.py --model local-dir:FOLDER [--key value ...]`."""

import msff_timm_cli.startup  # noqa: F401  isort: skip

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

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
from ..data.counts import LabelCounts
from ..data.samples import Samples
from ..data.transforms import eval_transform
from ..errors import InputError
from ..files import replace_file
from ..inference.predict import check_finite
from ..labels import describe_matches, match_labels, stored_names
from ..results import Results
from .commands import environment, run_command
from .config import EvalDataConfig, EvaluateConfig, parse
from .evaluator import FOLDS, compute_metrics, fit_thresholds, score
from .loaders import make_loader, share_cores
from .report import describe, describe_top


def main() -> None:
    config = parse(EvaluateConfig, sys.argv[1:])
    accelerator = Accelerator()
    share_cores(accelerator, config.data.workers)
    made_with = environment(accelerator)

    # Model, images, and the labels that both know
    model, data_config = load_model(config.model, config.image_size)
    data, known = config.data, stored_names(model)
    with accelerator.main_process_first():  # the others find what it has read
        dataset = load_data(data, known, data_config['input_size'][-1])
    for line in msff_timm.data.notes(dataset):
        accelerator.print(line)
    labels = share_labels(config.model, model.num_classes, known, msff_timm.data.label_names(dataset))
    check_labels(config, labels)
    for line in describe_matches(labels.renamed):
        accelerator.print(line)
    if labels.left_out:
        left_out, total = len(labels.left_out), len(labels.names) + len(labels.left_out)
        accelerator.print(
            f'{config.model} does not know {left_out} of the {total} labels; left out: {some(labels.left_out)}.'
        )
    threshold = chosen_threshold(config, model, labels)

    # Scores
    samples = Samples(dataset, eval_transform(data_config))
    if labels.left_out:  # what `score` compares with
        samples.targets = samples.targets[:, labels.rows]
        samples.areas = None if samples.areas is None else samples.areas[:, labels.rows]
    samples.targets = data.without_ignored(samples.targets, labels.names)
    if config.fit_thresholds and len(dataset) < FOLDS:
        raise InputError(f'fit_thresholds is true: {len(dataset)} images are too few; give at least {FOLDS}.')
    if not config.submission:
        kept = data.kept_labels(labels.names)
        counts = LabelCounts.of(samples.targets[:, kept], [labels.names[k] for k in kept], data.masking)
        counts.check(f'{data.root or data.name}: {data.split}', 'data.split')
        if line := counts.warning(data.split, trains=False):
            accelerator.print(f'warning: {line}')
    loader = accelerator.prepare(make_loader(samples, config.batch_size, data.workers))
    scorer = Scorer(model, labels.columns, config.flip).to(accelerator.device)
    scored = score(accelerator, scorer, loader)
    image_ids, scores = dataset['image_id'][:], scored.arrays(len(dataset))['scores']
    if config.scores and accelerator.is_main_process:
        measured_on = {'model': config.model, 'data': data.definition(data.split), 'flip': config.flip}
        written(config.scores, partial(write_scores, image_ids, scores, labels.names, measured_on))
    if config.submission:
        if accelerator.is_main_process:
            voc.write_submission(config.submission, image_ids, scores, labels.names)
            voc.check_submission(config.submission, data.root)
        accelerator.print(f'{config.submission}: {len(dataset)} images of voc2012 test, 20 classes, comp2.')
        accelerator.end_training()
        return

    # Measures
    options = {'ap': config.ap, 'threshold': threshold, 'bootstrap': config.bootstrap, 'top_k': config.top_k}
    measures = compute_metrics(scored, len(dataset), **options)
    results = Results.from_metrics(
        measures,
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
        results.thresholds = fit_thresholds(scored, data.definition(data.split))
    if accelerator.is_main_process:
        if fitted := results.thresholds:
            fitted['per_class'] = [fitted['per_class'][k] for k in np.argsort(labels.columns)]  # as the logits
            path, number, total = hub.set_thresholds(config.model, fitted), fitted['num_fitted'], len(labels.names)
            print(
                f'Thresholds of {total} labels stored in {path}.'
                if number == total
                else f'Thresholds of {number} of {total} labels fitted, 0.5 for the others; stored in {path}.'
            )
        if config.output:
            written(config.output, results.to_json)
    accelerator.end_training()


def load_model(name: str, image_size: int | None) -> tuple[nn.Module, dict]:
    """Loads a model with its preprocessing, for images of another size than its own if one is given.

    Raises:
        InputError: It cannot be loaded, or does not take images of that size.
    """
    model = hub.load(name)
    if image_size is None:
        return model, timm.data.resolve_input_data_config(model)
    if model.pretrained_cfg.get('fixed_input_size') and image_size != model.pretrained_cfg['input_size'][-1]:
        model = hub.load(name, img_size=image_size)  # its position embeddings are resampled as they are loaded
    data_config = timm.data.resolve_input_data_config(model, {'img_size': image_size})
    try:
        with torch.inference_mode():
            model(torch.zeros(1, *data_config['input_size']))
    except (RuntimeError, ValueError, AssertionError) as e:
        reason = ' '.join(str(e).split()) or type(e).__name__
        raise InputError(f'image_size is {image_size}: {name} does not take images of that size ({reason}).') from e
    return model, data_config


def load_data(data: EvalDataConfig, known: Sequence[str] | None, image_size: int) -> datasets.Dataset:
    """Loads the images; where nothing fixes their labels these are the model's, if it knows all that occur."""
    if known and data.name in ('table', 'folder', 'hub') and data.label_names is None:
        try:
            return replace(data, label_names=list(known)).load(data.split, data.size, image_size)
        except InputError:  # others occur, or it has other columns; any other error comes again
            pass
    return data.load(data.split, data.size, image_size)


@dataclass(frozen=True)
class SharedLabels:
    """The labels of a data set that a model knows.

    Attributes:
        names: In the data set's order.
        rows: Their numbers in the data set.
        columns: Their numbers in the model's logits.
        renamed: The model's name of those that it has another one for.
        left_out: Those that it does not know.
        unused: The model's that the data set has not.
    """

    names: list[str]
    rows: list[int]
    columns: list[int]
    renamed: dict[str, str]
    left_out: list[str]
    unused: list[str]


def share_labels(name: str, num_classes: int, known: Sequence[str] | None, label_names: Sequence[str]) -> SharedLabels:
    """Finds by name which of a data set's labels a model knows.

    Args:
        name: Of the model.
        num_classes: Its number of logits.
        known: Names in the order of its logits; without any it has to have as many as the data set.
        label_names: The data set's.

    Raises:
        InputError: They share none, or the model has no names and another number of them.
    """
    if not known:
        if num_classes != len(label_names):
            raise InputError(
                f'{name}: has {num_classes} labels without names, and the data {len(label_names)}; only a model whose'
                ' config.json has label_names can be measured on other labels than its own.'
            )
        known = label_names
    matched = match_labels(known, label_names)
    if not matched:
        raise InputError(f'{name}: knows none of the labels of the data ({some(label_names)}), only {some(known)}.')
    return SharedLabels(
        names=list(matched),
        rows=[label_names.index(new) for new in matched],
        columns=[known.index(old) for old in matched.values()],
        renamed={new: old for new, old in matched.items() if new != old},
        left_out=[label for label in label_names if label not in matched],
        unused=[label for label in known if label not in matched.values()],
    )


def some(names: Sequence[str], most: int = 10) -> str:
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '')


def check_labels(config: EvaluateConfig, labels: SharedLabels) -> None:
    """Refuses what cannot be done with the labels that are shared."""
    if config.submission and labels.left_out:
        raise InputError(
            f"submission is {config.submission}: it holds VOC's 20 classes, and {config.model} does not know"
            f' {some(labels.left_out)}.'
        )
    if config.fit_thresholds and labels.unused:
        raise InputError(
            f'fit_thresholds is true: the data have not all labels of {config.model} ({some(labels.unused)}), and it'
            ' needs a threshold for each.'
        )
    if config.scores and 'image_id' in labels.names:
        raise InputError(f'scores is {config.scores}: a label is called image_id, as the column of the images is.')


def chosen_threshold(config: EvaluateConfig, model: nn.Module, labels: SharedLabels) -> float | list[float]:
    """Returns the threshold to measure at: one number, or the model's own for each label."""
    if config.threshold is not None:
        return config.threshold
    if model.thresholds is None:
        raise InputError(f'threshold is null: {config.model} has none of its own; see fit_thresholds.')
    return [model.thresholds[column] for column in labels.columns]


class Scorer(nn.Module):
    """A model's logits of some labels, of the images as they are or together with their mirror images.

    Args:
        model: From images (B, C, H, W) to logits (B, K).
        columns: Numbers of the labels.
        flip: Give the logit of the mean of the probabilities of each image and its mirror image.
    """

    def __init__(self, model: nn.Module, columns: Sequence[int], flip: bool):
        super().__init__()
        self.model = model
        self.columns = list(columns)
        self.flip = flip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images (B, C, H, W) to logits (B, n)."""
        logits = self.model(images)[:, self.columns].float()
        check_finite(self.model, logits)
        if not self.flip:
            return logits
        mirrored = self.model(images.flip(-1))[:, self.columns].float()
        # The logarithms of both sums, of what speaks for a label and against it, are exact near 0 and 1 too.
        present = torch.logaddexp(logsigmoid(logits), logsigmoid(mirrored))
        return present - torch.logaddexp(logsigmoid(-logits), logsigmoid(-mirrored))


def write_scores(
    image_ids: Sequence[str], scores: np.ndarray, label_names: Sequence[str], measured_on: dict, path: str
) -> None:
    """Writes probabilities (N, K) as a Parquet file of `image_id` and a column of 32-bit floats for each label."""
    columns = [pa.array(image_ids, pa.string()), *(pa.array(column, pa.float32()) for column in scores.T)]
    table = pa.table(columns, ['image_id', *label_names]).replace_schema_metadata(
        {'msff_timm': json.dumps(measured_on)}
    )
    with replace_file(path) as temporary:
        pq.write_table(table, temporary)


def written(path: str, write: partial) -> None:
    """Writes a file of results; a full disk ends the run with one line."""
    try:
        write(path)
    except OSError as e:
        raise InputError(f'{Path(path)}: cannot be written ({e.strerror or e}).') from None


if __name__ == '__main__':
    run_command(main)
