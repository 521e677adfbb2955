"""Values of results and thresholds for a model card.

The files may come from anybody, so each value is checked: a wrong one raises an exception.
"""

import math
import re
import unicodedata
from collections import Counter
from pathlib import Path

import yaml
from huggingface_hub import EvalResult

from ..metrics import FEW, SIZES
from ..results import METRICS, Results
from ..thresholds import parse_target, positives_needed

__all__ = [
    'clean',
    'dump_settings',
    'make_metadata',
    'read_calibration',
    'read_metrics',
    'read_recipe',
    'read_thresholds',
]

MAX_COUNT = 10**15
# The Hub's ids and arguments of metrics, for its metadata
METRIC_IDS = {
    'mAP': ('mean_average_precision', {}),
    'CF1': ('f1', {'average': 'macro'}),
    'OF1': ('f1', {'average': 'micro'}),
}
DATASETS = {
    'coco2014': 'COCO 2014',
    'coco2017': 'COCO 2017',
    'voc2007': 'PASCAL VOC 2007',
    'voc2012': 'PASCAL VOC 2012',
    'scenes': 'scenes',
}
# Settings of a run that make up its recipe. None of them is a path, a command or an address.
RECIPE = {
    'model': 'args drop_rate batch_norm freeze unfreeze_epochs',
    'data': 'train_size eval_size keep_unlabelled difficult missing minus_one blank none_label repeated_images'
    ' validation_fold image_size hflip crop_scale crop_ratio rand_augment color_jitter cutout mixup cutmix',
    'optim': 'epochs batch_size lr schedule warmup backbone_lr layer_decay weight_decay clip_grad loss gamma_pos'
    ' gamma_neg asl_clip poly_epsilon label_smoothing pos_weight pos_weight_max ema_decay ema_epochs early_stop',
}


def read_metrics(results: Results, labels: dict[str, dict]) -> dict:
    """Returns the metrics that a card shows; those of each label are added to `labels`."""
    for name, label in results.labels.items():
        if name not in labels:
            raise ValueError(f'its label {name!r:.99} is not in config.json')
        labels[name].update(
            AP=_percent(label['AP'], f'AP of {name!r:.99}'),
            num_positives=_count(label['num_positives'], f'num_positives of {name!r:.99}'),
            num_negatives=_count(label.get('num_negatives'), f'num_negatives of {name!r:.99}'),
        )
    data, threshold, top = results.data, results.definitions['threshold'], results.top
    rows = [('saved', results.metrics), ('model', results.model_weights), ('top', top)]
    counted = {name: label for name, label in labels.items() if label['AP'] is not None}
    by_size, positives = results.mAP_by_size or {}, results.num_positives_by_size or {}
    interval = [_percent(end, 'an end of the interval') for end in results.mAP_interval_95 or ()]
    return {
        'data': _title(data),
        'split': _text(data['split'], 'split', True),
        'difficult': _text(data.get('difficult'), 'difficult'),
        'keep_unlabelled': bool(data.get('keep_unlabelled')),
        'is_coco': str(data['name']).startswith('coco'),
        'was_trained_on': _includes(data.get('trained_on'), data['split']),
        'definition': _text(results.definitions['mAP'], 'the definition of mAP', True),
        'threshold': None if isinstance(threshold, list) else _number(threshold, 'threshold', 1),
        'num_images': _whole(results.num_images, 'num_images'),
        'num_classes': _whole(results.num_classes, 'num_classes'),
        'num_counted': _whole(results.num_labels_counted, 'num_labels_counted'),
        'rows': {kind: [_percent(row.get(name), name) for name in METRICS] for kind, row in rows if row},
        'top': {
            'k': _whole(top['k'], 'k'),
            **{name: _number(top[name], name, 100) for name in ('P', 'R', 'F1')},
            'num_found': _whole(top['N+'], 'N+'),
            'num_labels': _whole(top['num_labels'], 'num_labels'),
        },
        'interval': interval if len(interval) == 2 and None not in interval else [],
        'by_size': {
            f'{size}, {band.text}': (value, _count(positives.get(size), f'num_positives_by_size of {size}'))
            for size, band in SIZES.items()
            if (value := _percent(by_size.get(size), f'mAP_by_size of {size}')) is not None
        },
        'few_positives': [name for name, label in counted.items() if (label['num_positives'] or FEW) < FEW],
        'few_negatives': [name for name, label in counted.items() if (label['num_negatives'] or FEW) < FEW],
        'no_positives': [name for name, label in labels.items() if label['num_positives'] == 0],
        'no_negatives': [name for name, label in labels.items() if label['num_positives'] and name not in counted],
        'few': FEW,
    }


def read_thresholds(thresholds: dict, labels: dict[str, dict]) -> dict:
    """Returns what a card shows of stored thresholds; the threshold of each label is added to `labels`."""
    for (name, label), threshold in zip(labels.items(), thresholds['per_class'], strict=True):
        label['threshold'] = _number(threshold, f'the threshold of {name!r:.99}', 1)
    if is_calibrated := 'temperatures' in thresholds:
        values = zip(labels.items(), thresholds['temperatures'], thresholds['biases'], strict=True)
        for (name, label), temperature, bias in values:
            label['temperature'] = _number(temperature, f'the temperature of {name!r:.99}', MAX_COUNT)
            label['bias'] = math.copysign(_number(abs(bias), f'the bias of {name!r:.99}', MAX_COUNT), bias)
    out_of_fold, data, overall = thresholds.get('out_of_fold') or {}, thresholds.get('data'), thresholds.get('overall')
    target, names = _text(thresholds.get('target') or 'f1', 'target'), list(labels)
    return {
        'overall': None if overall is None else _number(overall, 'overall', 1),
        'data': _title(data) if data else None,
        'split': _text(data.get('split'), 'split') if data else None,
        'num_images': _count(thresholds.get('num_images'), 'num_images'),
        'num_fitted': _count(thresholds.get('num_fitted'), 'num_fitted'),
        'folds': _count(thresholds.get('folds'), 'folds'),
        'target': None if target == 'f1' else parse_target(target),
        'needed': positives_needed(target),
        'num_met': _count(thresholds.get('num_met'), 'num_met'),
        'unmet': [names[_whole(k, 'unmet')] for k in thresholds.get('unmet') or ()],
        'too_rare': [names[_whole(k, 'too_rare')] for k in thresholds.get('too_rare') or ()],
        'is_calibrated': is_calibrated,
        'out_of_fold': {
            kind: [_percent(out_of_fold[kind][name], name) for name in ('CF1', 'OF1', 'macro_F1')]
            for kind in ('per_class', 'overall', 'default')
            if kind in out_of_fold
        },
    }


def read_calibration(results: Results) -> dict | None:
    """Returns ECE in percent and Brier score of the probabilities, or None if they were not measured."""
    measured = results.calibration
    if not measured:
        return None
    return {
        'by': _text(measured.get('calibrated_by'), 'calibrated_by'),
        'rows': {
            kind: (_number(measured[kind]['ECE'], 'ECE', 100), _number(measured[kind]['Brier'], 'Brier', 1))
            for kind in ('uncalibrated', 'calibrated')
            if kind in measured
        },
    }


def read_recipe(results: Results) -> dict | None:
    """Returns how the model was trained, or None for results of an evaluation."""
    config = results.config or {}
    if 'optim' not in config:
        return None
    model, distill = config['model'], config.get('distill') or {}
    return {
        'data': _title({**results.data, **config['data']} if 'root' not in results.data else results.data),
        'split': _text(config['data']['train_split'], 'train_split'),
        'init_from': _source(model.get('init_from')),
        'backbone_from': _source(model.get('backbone_from')),
        'backbone_pretrained': bool(model.get('backbone_pretrained')),
        'teacher': _source(distill.get('teacher')),
        'epochs': _whole(config['optim']['epochs'], 'epochs'),
        'epoch': _count(results.epoch, 'epoch'),
        'chosen_on': _text(config['data']['eval_split'], 'eval_split') if config['optim'].get('early_stop') else None,
        'weights': _text(results.weights, 'weights'),
        'num_processes': _whole(results.num_processes or 1, 'num_processes'),
        'devices': list(Counter(_text(device, 'a device') for device in results.devices or ()).items()),
        'mixed_precision': _text(results.mixed_precision, 'mixed_precision'),
        'seconds': None if results.seconds is None else _number(results.seconds, 'seconds', MAX_COUNT),
        'versions': [
            (package, _text(version, f'the version of {package!r:.99}'))
            for package, version in results.versions.items()
            if version
        ],
        'git_commit': _text(results.git_commit, 'git_commit'),
        'git_dirty': bool(results.git_dirty),
    }


def dump_settings(results: Results) -> str:
    """Writes the settings of the recipe as a fenced block of YAML, or '' for results of an evaluation."""
    config = results.config or {}
    if 'optim' not in config:
        return ''
    chosen = {
        part: {name: clean(config[part][name]) for name in names.split() if name in config[part]}
        for part, names in RECIPE.items()
    }
    text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    fence = '`' * max(3, 1 + max(map(len, re.findall('`+', text)), default=0))  # longer than any in the text
    return f'{fence}yaml\n{text}{fence}'


def make_metadata(results: Results, measured: dict) -> tuple[list[EvalResult], dict]:
    """Makes the Hub's metadata: the evaluation results, and the sources of the model and its data."""
    data, threshold = results.data, measured['threshold']
    at = "the model's own thresholds" if threshold is None else f'threshold {threshold:g}'
    # One of two definitions of macro F1; scikit-learn's is the mean of the labels' F1.
    details = {'mAP': measured['definition'], 'CF1': f'F1 of CP and CR, {at}', 'OF1': at}
    hub_id = re.split('[:@]', data['root'])[0] if data['name'] == 'hub' and '/' in str(data.get('root')) else None
    evaluated = [
        EvalResult(
            task_type='image-classification',
            task_name='Multi-label image classification',
            dataset_type=clean(hub_id or data['name']),
            dataset_name=clean(measured['data']),
            dataset_split=clean(measured['split']),
            dataset_args={'num_images': measured['num_images'], 'num_classes': measured['num_counted']},
            metric_type=METRIC_IDS[name][0],
            metric_args=METRIC_IDS[name][1] or None,
            metric_name=clean(f'{name} in percent ({details[name]})'),
            metric_value=round(value, 2),
        )
        for name, value in zip(METRICS, measured['rows']['saved'], strict=True)
        if name in METRIC_IDS and value is not None
    ]
    sources = {'datasets': [clean(hub_id)]} if hub_id else {}
    model = (results.config or {}).get('model') or {}
    start = str(model.get('init_from') or model.get('backbone_from') or '')
    if start.startswith('hf-hub:'):
        sources['base_model'] = clean(start.removeprefix('hf-hub:').partition('@')[0])
    return evaluated, sources


def _number(value: object, name: str, most: float) -> float:
    """Checks that a value is a number from 0 to `most`, which infinity and NaN are not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f'{name} is {_short(value)}, which is no number from 0 to {most:g}')
    return float(value)


def _whole(value: object, name: str) -> int:
    number = _number(value, name, MAX_COUNT)
    if number != int(number):
        raise ValueError(f'{name} is {_short(value)}, which is no whole number')
    return int(number)


def _count(value: object, name: str) -> int | None:
    return None if value is None else _whole(value, name)


def _percent(value: object, name: str) -> float | None:
    """Checks that a value is in percent; returns None for an undefined one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return _number(value, name, 100 + 1e-6)  # a mean may exceed 100 by rounding


def _text(value: object, name: str, is_needed: bool = False) -> str | None:
    """Checks that a value is text, or a number or boolean that can be shown as text."""
    if (is_needed and not clean(value)) or (value is not None and not isinstance(value, str | int | float)):
        raise ValueError(f'{name} is {_short(value)}, which is no text')
    return None if value is None else str(value)


def _short(value: object) -> str:
    """Shows the beginning of a value, which may be long or deeply nested."""
    return f'a {type(value).__name__}' if isinstance(value, dict | list) else f'{value!r:.40}'


def _title(data: dict) -> str:
    """Returns the usual name of a data set; for one's own images, the last part of their path."""
    name, root = _text(data['name'], 'the name of the data', True), _text(data.get('root'), 'the root of the data')
    if title := _text(data.get('title'), 'the title of the data'):
        return title
    if name in DATASETS:
        return DATASETS[name]
    if root is None:
        return 'own images'
    return root if name == 'hub' and '/' in root else f'own images ({Path(root).name})'


def _includes(trained_on: str | None, split: str) -> bool:
    """Returns whether a training split includes the images of another split."""
    return trained_on == split or (trained_on == 'trainval' and split in ('train', 'validation', 'val'))


def _source(name: str | None) -> str | None:
    """Returns the name of a model that another one started from; the path of a folder is of no use elsewhere."""
    name = _text(name, 'a model')
    return 'another run (a local folder)' if name is not None and name.startswith('local-dir:') else name


def clean(value: object) -> object:
    """Puts text on one line of printable characters that YAML and UTF-8 can hold; other values stay as they are."""
    if not isinstance(value, str):
        return value
    shown = (' ' if unicodedata.category(c) in ('Cc', 'Zl', 'Zp') else c for c in value)
    return ' '.join(''.join('�' if unicodedata.category(c) == 'Cs' else c for c in shown).split())
