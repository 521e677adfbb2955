"""Model cards: the page of a model on the Hub, made of a template, its configuration and its results."""

import html
import json
import math
import re
import unicodedata
from collections import Counter
from pathlib import Path

import timm
import torch
import torch.nn as nn
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from timm.models import PretrainedCfg
from torch.utils.flop_counter import FlopCounterMode

from ..errors import InputError, unknown
from ..metrics import FEW, SIZES

__all__ = ['RUN_IMAGES', 'count', 'escape', 'images', 'render', 'render_tag', 'tags']

# In a wheel, hub_cards/ lies within the package; in a clone, beside it.
INSTALLED = Path(__file__).parents[1] / 'hub_cards'
HUB_CARDS = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / 'hub_cards'
FIGURE = 'architecture.svg'
RUN_IMAGES = ('curves.png', 'ap.png')  # not mistakes.png: its photos may be nobody's to publish
MOST_BYTES = 50_000_000  # of a file of JSON
MOST = 10**15  # of things that are counted
MEASURES = ('mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')
DATASETS = {
    'coco2014': 'COCO 2014',
    'coco2017': 'COCO 2017',
    'voc2007': 'PASCAL VOC 2007',
    'voc2012': 'PASCAL VOC 2012',
    'scenes': 'scenes',
}
# The settings of a run that are its recipe. None of them is a path, a command or an address.
RECIPE = {
    'model': 'args drop_rate batch_norm freeze unfreeze_epochs',
    'data': 'train_size eval_size keep_unlabelled difficult missing minus_one blank image_size hflip crop_scale'
    ' crop_ratio rand_augment color_jitter cutout mixup cutmix',
    'optim': 'epochs batch_size lr schedule warmup backbone_lr layer_decay weight_decay clip_grad loss gamma_pos'
    ' gamma_neg asl_clip poly_epsilon label_smoothing pos_weight pos_weight_max ema_decay ema_epochs early_stop',
}

# What values of wrong types, or nested too deeply, end in
ODD = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, yaml.YAMLError)


def tags() -> list[str]:
    """Lists the tags that have a card of their own, `msff_resnet101.coco2014_448` say."""
    return sorted(path.stem for path in (HUB_CARDS / 'tags').glob('*.yaml'))


def images(folder: Path) -> dict[str, Path]:
    """Finds the images that the card of a run's folder shows.

    Args:
        folder: As for `render`.

    Returns:
        Where each lies, by the name that it has beside the card.
    """
    found = {name: Path(folder, name) for name in RUN_IMAGES if Path(folder, name).is_file()}
    if str(_read_json(Path(folder, 'config.json')).get('architecture')).startswith('msff_'):
        found[FIGURE] = HUB_CARDS / FIGURE
    return found


def render(folder: Path, repo_id: str | None = None) -> str:
    """Renders the card of a trained model.

    Args:
        folder: With `config.json` and, where it has been measured, `results.json`; its weights are not read.
        repo_id: Where the card is to lie: `ORG/NAME`. Where NAME is a tag's and the model has its architecture and
            labels, the card tells what is known of the tag.

    Returns:
        The text of `README.md`. It refers to `images` by their names alone.

    Raises:
        InputError: A file is missing or not as it should be, or there is no such model or repository id.
    """
    path = Path(folder, 'config.json')
    config = _read_json(path)
    try:
        with torch.device('meta'):
            model = timm.create_model(f'local-dir:{folder}', pretrained=False)
        cfg = PretrainedCfg(**model.pretrained_cfg)
        size = count(model, cfg.input_size)
        label_names = [str(name) for name in cfg.label_names]
        if len(label_names) != model.num_classes:
            raise ValueError(f'{len(label_names)} label names for {model.num_classes} logits')
    except Exception as e:
        # A damaged configuration shows itself in many types of exception.
        raise InputError(f'{path}: is of no model that can be created ({_one_line(e)}).') from e
    weights, measured = Path(folder, 'model.safetensors'), Path(folder, 'results.json')
    size['num_bytes'] = weights.stat().st_size if weights.is_file() else None
    about = {}
    name = (repo_id or '').rpartition('/')[2]
    if name in tags():
        registered = timm.get_pretrained_cfg(name)
        if (registered.architecture, list(registered.label_names)) == (cfg.architecture, label_names):
            about = _about(name)
    return _render(
        cfg,
        label_names,
        size,
        results=_read_json(measured) if measured.is_file() else None,
        where=measured,
        thresholds=config.get('thresholds'),
        about=about,
        repo_id=repo_id,
        source=f'hf-hub:{repo_id or "ORG/NAME"}',
        shown=sorted(images(folder)),
    )


def render_tag(tag: str) -> str:
    """Renders the card of a tag from what this package knows of it.

    Args:
        tag: One of `tags()`.

    Returns:
        As `render` does.

    Raises:
        InputError: There is no such tag.
    """
    if tag not in tags():
        raise unknown('tag', tag, tags())
    cfg = timm.get_pretrained_cfg(tag)
    with torch.device('meta'):
        model = timm.create_model(tag, pretrained=False)
    measured = HUB_CARDS / 'results' / f'{tag}.json'
    results = _read_json(measured) if measured.is_file() else None
    return _render(
        cfg,
        list(cfg.label_names),
        {**count(model, cfg.input_size), 'num_bytes': None},
        results=results,
        where=measured,
        thresholds=(results or {}).get('thresholds'),
        about=_about(tag),
        repo_id=cfg.hf_hub_id,
        source=tag if cfg.file else f'hf-hub:{cfg.hf_hub_id}',  # a file is one that the package brings
        shown=[FIGURE],
    )


def _about(tag: str) -> dict:
    """Reads what is known of a tag beyond its configuration and its results."""
    return yaml.safe_load((HUB_CARDS / 'tags' / f'{tag}.yaml').read_text(encoding='utf-8'))


def _read_json(path: Path) -> dict:
    if path.exists() and not path.is_file():
        raise InputError(f'{path}: is no regular file.')
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f'it has more than {MOST_BYTES:,} bytes')
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise InputError(f'{path.parent}: holds no {path.name}; give a folder that training saved.') from None
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f'{path}: cannot be read ({_one_line(e)}).') from e
    if not isinstance(content, dict):
        raise InputError(f'{path}: holds no JSON object.')
    return content


def count(model: nn.Module, input_size: tuple[int, int, int]) -> dict:
    """Counts parameters, and GFLOPs of one image: without computing, for the model is on the meta device."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        # Without gradients, which the counter would follow even here.
        model.eval().requires_grad_(False)(torch.empty(1, *input_size, device='meta'))
    return {'num_parameters': sum(p.numel() for p in model.parameters()), 'gflops': counter.get_total_flops() / 1e9}


def _render(
    cfg: PretrainedCfg,
    label_names: list[str],
    size: dict,
    results: dict | None,
    where: Path,
    thresholds: dict | None,
    about: dict,
    repo_id: str | None,
    source: str,
    shown: list[str],
) -> str:
    """Puts together what the template shows: texts that others have written are escaped here, all of them."""
    if repo_id is not None:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as e:
            raise InputError(f'{repo_id!r} is no id of a repository ({_one_line(e)}).') from None
    labels = {name: dict.fromkeys(('AP', 'num_positives', 'num_negatives', 'threshold')) for name in label_names}
    measured = recipe = fitted = None
    evaluated, more, settings = [], {}, ''
    try:
        if thresholds is not None:
            fitted = _thresholds(thresholds, labels)
    except ODD as e:
        config = where.with_name('config.json')
        raise InputError(f'{config}: its thresholds are not as training writes them ({_one_line(e)}).') from e
    try:
        if results is not None:
            measured = _measured(results, labels)
            recipe, settings = _recipe(results), _settings(results)
            evaluated, more = _metadata(results, measured)
    except ODD as e:
        raise InputError(f'{where}: is not of this model, or not as training writes it ({_one_line(e)}).') from e
    title = (repo_id or '').rpartition('/')[2] or cfg.architecture
    data = ModelCardData(
        license=cfg.license if re.fullmatch('[a-z0-9.-]+', str(cfg.license)) else 'other',
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['timm', 'image-classification', 'multi-label-classification', 'msff-timm'],
        model_name=title if evaluated else None,
        eval_results=evaluated or None,
        **more,
    )
    of_architecture = timm.get_pretrained_cfg(cfg.architecture)
    card = ModelCard.from_template(
        data,
        template_path=str(HUB_CARDS / 'template.md'),
        title=escape(title),
        name=repo_id or 'ORG/NAME',
        source=source,
        architecture=cfg.architecture,  # a registered name
        paper_name=escape(of_architecture.paper_name or ''),
        paper_url=of_architecture.origin_url or '',
        is_msff=cfg.architecture.startswith('msff_'),
        preprocessing=_escaped({**cfg.to_dict(), 'label_names': None}),
        labels=[{'name': escape(name), **figures} for name, figures in labels.items()],
        size=size,
        measured=_escaped(measured),
        recipe=_escaped(recipe),
        settings=settings,
        thresholds=_escaped(fitted),
        about=about,
        shown=shown,
    )
    return str(card)


def _measured(results: dict, labels: dict[str, dict]) -> dict:
    """Picks from results what the card tells of quality; each label's goes into `labels`."""
    for name, label in results['labels'].items():
        if name not in labels:
            raise ValueError(f'its label {name!r:.99} is not in config.json')
        labels[name].update(
            AP=_percent(label['AP'], f'AP of {name!r:.99}'),
            num_positives=_count(label['num_positives'], f'num_positives of {name!r:.99}'),
            num_negatives=_count(label.get('num_negatives'), f'num_negatives of {name!r:.99}'),
        )
    named, data = results['definitions'], results['data']
    threshold = named['threshold']
    rows = [('weights', results['metrics'])]
    if results.get('model_weights'):
        rows.append(('raw', results['model_weights']))
    top = results.get('top') or results.get('top3')  # as it was called while it was always 3
    if top:
        rows.append(('top', top))
    counted = {name: label for name, label in labels.items() if label['AP'] is not None}
    by_size, positives = results.get('mAP_by_size') or {}, results.get('num_positives_by_size') or {}
    interval = [_percent(end, 'an end of the interval') for end in results.get('mAP_interval_95') or ()]
    return {
        'data': _title(data),
        'split': _text(data['split'], 'split', True),
        'difficult': _text(data.get('difficult'), 'difficult'),
        'keep_unlabelled': bool(data.get('keep_unlabelled')),
        'is_coco': str(data['name']).startswith('coco'),
        'was_trained_on': _holds(data.get('trained_on'), data['split']),
        'definition': _text(named['mAP'], 'the definition of mAP', True),
        'threshold': None if isinstance(threshold, list) else _number(threshold, 'threshold', 1),
        'num_images': _whole(results['num_images'], 'num_images'),
        'num_classes': _whole(results['num_classes'], 'num_classes'),
        'num_counted': _whole(
            results.get('num_labels_counted', results.get('num_classes_with_positives')), 'num_labels_counted'
        ),
        'rows': {name: [_percent(values.get(key), key) for key in MEASURES] for name, values in rows},
        'top': top and _top(top),
        'interval': interval if len(interval) == 2 and None not in interval else [],
        'by_size': {
            size: (value, _count(positives.get(size), f'num_positives_by_size of {size}'))
            for size in SIZES
            if (value := _percent(by_size.get(size), f'mAP_by_size of {size}')) is not None
        },
        'few': [name for name, label in counted.items() if (label['num_positives'] or FEW) < FEW],
        'few_absent': [name for name, label in counted.items() if (label['num_negatives'] or FEW) < FEW],
        'without': [name for name, label in labels.items() if label['num_positives'] == 0],
        'without_absent': [name for name, label in labels.items() if label['num_positives'] and name not in counted],
        'most': FEW,
    }


def _top(top: dict) -> dict:
    """Picks what the card adds to the table about the labels of highest probability in each image."""
    found = {'k': _whole(top.get('k', 3), 'k')}
    if 'N+' in top:
        found |= {key: _number(top[key], key, 100) for key in ('P', 'R', 'F1')}
        found |= {'num_found': _whole(top['N+'], 'N+'), 'num_labels': _whole(top['num_labels'], 'num_labels')}
    return found


def _number(value: object, name: str, most: float) -> float:
    """Checks that a value is a number from 0 to `most`; infinity and NaN are none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f'{name} is {_short(value)}, which is no number from 0 to {most:g}')
    return float(value)


def _whole(value: object, name: str) -> int:
    """Checks that a value is a whole number of things."""
    number = _number(value, name, MOST)
    if number != int(number):
        raise ValueError(f'{name} is {_short(value)}, which is no whole number')
    return int(number)


def _count(value: object, name: str) -> int | None:
    return None if value is None else _whole(value, name)


def _percent(value: object, name: str) -> float | None:
    """Checks that a value is in percent; None where it is not defined."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return _number(value, name, 100 + 1e-6)  # a mean of several is rounded


def _text(value: object, name: str, is_needed: bool = False) -> str | None:
    """Checks that a value is text, or a number or choice that can stand for it."""
    if is_needed and not _plain(value) or value is not None and not isinstance(value, str | int | float):
        raise ValueError(f'{name} is {_short(value)}, which is no text')
    return None if value is None else str(value)


def _short(value: object) -> str:
    """Shows a value in part: it may be long, or nested more deeply than Python shows."""
    return f'a {type(value).__name__}' if isinstance(value, dict | list) else f'{value!r:.40}'


def _thresholds(thresholds: dict, labels: dict[str, dict]) -> dict:
    """Picks what the card tells of stored thresholds; each label's goes into `labels`."""
    for (name, label), threshold in zip(labels.items(), thresholds['per_class'], strict=True):
        label['threshold'] = _number(threshold, f'the threshold of {name!r:.99}', 1)
    out_of_fold, data, overall = thresholds.get('out_of_fold') or {}, thresholds.get('data'), thresholds.get('overall')
    return {
        'overall': None if overall is None else _number(overall, 'overall', 1),
        'data': _title(data) if data else None,
        'split': _text(data.get('split'), 'split') if data else None,
        'num_images': _count(thresholds.get('num_images'), 'num_images'),
        'num_fitted': _count(thresholds.get('num_fitted'), 'num_fitted'),
        'folds': _count(thresholds.get('folds'), 'folds'),
        'out_of_fold': {
            kind: [_percent(out_of_fold[kind][name], name) for name in ('CF1', 'OF1', 'macro_F1')]
            for kind in ('per_class', 'overall', 'default')
            if kind in out_of_fold
        },
    }


def _recipe(results: dict) -> dict | None:
    """Picks from results how the model was trained; None where they are of a measurement alone."""
    config = results.get('config') or {}
    if 'optim' not in config:
        return None
    model, distill = config['model'], config.get('distill') or {}
    seconds = results.get('seconds')
    return {
        'data': _title({**results['data'], **config['data']} if 'root' not in results['data'] else results['data']),
        'split': _text(config['data']['train_split'], 'train_split'),
        'init_from': _source(model.get('init_from')),
        'backbone_from': _source(model.get('backbone_from')),
        'backbone_pretrained': bool(model.get('backbone_pretrained')),
        'teacher': _source(distill.get('teacher')),
        'epochs': _whole(config['optim']['epochs'], 'epochs'),
        'epoch': _count(results.get('epoch'), 'epoch'),
        'weights': _text(results.get('weights'), 'weights'),
        'num_processes': _whole(results.get('num_processes') or 1, 'num_processes'),
        'devices': list(Counter(_text(device, 'a device') for device in results.get('devices') or ()).items()),
        'mixed_precision': _text(results.get('mixed_precision'), 'mixed_precision'),
        'seconds': None if seconds is None else _number(seconds, 'seconds', MOST),
        'versions': [
            (package, _text(version, f'the version of {package!r:.99}'))
            for package, version in (results.get('versions') or {}).items()
            if version
        ],
        'git_commit': _text(results.get('git_commit'), 'git_commit'),
        'git_dirty': bool(results.get('git_dirty')),
    }


def _settings(results: dict | None) -> str:
    """Writes the recipe's settings as YAML within a fence that nothing in them closes; '' where there are none."""
    config = (results or {}).get('config') or {}
    if 'optim' not in config:
        return ''
    chosen = {
        part: {name: _plain(config[part][name]) for name in names.split() if name in config[part]}
        for part, names in RECIPE.items()
    }
    text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    fence = '`' * max(3, 1 + max(map(len, re.findall('`+', text)), default=0))
    return f'{fence}yaml\n{text}{fence}'


def _metadata(results: dict, measured: dict) -> tuple[list[EvalResult], dict]:
    """Makes the measures, and what the model and its data come from, as the Hub's metadata have them."""
    data = results['data']
    definitions = {'mAP': measured['definition']}
    threshold = measured['threshold']
    at = "the model's own thresholds" if threshold is None else f'threshold {threshold:g}'
    hub_id = re.split('[:@]', data['root'])[0] if data['name'] == 'hub' and '/' in str(data.get('root')) else None
    evaluated = [
        EvalResult(
            task_type='image-classification',
            task_name='Multi-label image classification',
            dataset_type=_plain(hub_id or data['name']),
            dataset_name=_plain(measured['data']),
            dataset_split=_plain(measured['split']),
            dataset_args={'num_images': measured['num_images'], 'num_classes': measured['num_counted']},
            metric_type=name,
            metric_name=_plain(f'{name} in percent ({definitions.get(name, at)})'),
            metric_value=round(value, 2),
        )
        for name, value in zip(MEASURES, measured['rows']['weights'], strict=True)
        if name in ('mAP', 'CF1', 'OF1') and value is not None
    ]
    more = {'datasets': [_plain(hub_id)]} if hub_id else {}
    model = (results.get('config') or {}).get('model') or {}
    start = str(model.get('init_from') or model.get('backbone_from') or '')
    if start.startswith('hf-hub:'):
        more['base_model'] = _plain(start.removeprefix('hf-hub:').partition('@')[0])
    return evaluated, more


def _title(data: dict) -> str:
    """Names data as people do; of a folder or table its last name alone, as results have it."""
    name, root = _text(data['name'], 'the name of the data', True), _text(data.get('root'), 'the root of the data')
    if title := _text(data.get('title'), 'the title of the data'):
        return title
    if name in DATASETS:
        return DATASETS[name]
    if root is None:
        return 'own photos'
    return str(root) if name == 'hub' and '/' in str(root) else f'own photos ({Path(str(root)).name})'


def _holds(trained_on: str | None, split: str) -> bool:
    """Tells whether a training split holds the images of another split."""
    return trained_on == split or (trained_on == 'trainval' and split in ('train', 'validation', 'val'))


def _source(name: str | None) -> str | None:
    """Names a model that another came from, unless it is a folder, whose path says nothing on another machine."""
    name = _text(name, 'a model')
    if name is None or not name.startswith('local-dir:'):
        return name
    return 'another run (a local folder)'


def _plain(value: object) -> object:
    """Puts text into one line of characters that show, and that YAML and UTF-8 can carry; leaves other values."""
    if not isinstance(value, str):
        return value
    shown = (' ' if unicodedata.category(c) in ('Cc', 'Zl', 'Zp') else c for c in value)
    return ' '.join(''.join('�' if unicodedata.category(c) == 'Cs' else c for c in shown).split())


def escape(value: object) -> str:
    """Makes text that Markdown shows as it is, in one line: it holds no markup, link, mathematics or HTML."""
    text = html.escape(str(_plain(str(value))), quote=False)
    # Some by entities, since not all of Markdown's dialects know these characters behind a backslash.
    text = re.sub(r'[:~$@]|(?<=www)\.', lambda found: f'&#{ord(found[0])};', text, flags=re.IGNORECASE)
    return re.sub(r'([\\`*_\[\]|])', r'\\\1', text)


def _escaped(value: object) -> object:
    """Escapes all texts in lists and in the values of dictionaries, whose keys are this module's own."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return value


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
