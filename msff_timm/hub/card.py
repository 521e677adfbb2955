"""Model cards: the page of a model on the Hub, rendered from a template, its configuration and its results."""

import html
import json
import re
from pathlib import Path

import timm
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from timm.models import PretrainedCfg

from ..errors import InputError, one_line, unknown
from ..files import read_small
from ..flops import measure_size
from ..labels import check_label_names
from ..results import Results
from . import card_data

__all__ = ['HUB_CARDS', 'RUN_IMAGES', 'escape', 'images', 'render', 'render_tag', 'tags']

# In a wheel, hub_cards/ is within the package; in a clone, it is beside it.
INSTALLED = Path(__file__).parents[1] / 'hub_cards'
HUB_CARDS = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2] / 'hub_cards'
FIGURE = 'architecture.svg'
RUN_IMAGES = ('curves.png', 'ap.png', 'reliability.png')  # not mistakes.png, whose photos may not be for publication
MAX_BYTES = 50_000_000  # size of config.json
# Exceptions that values of wrong types, or nested too deeply, lead to
ODD = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, yaml.YAMLError)


def tags() -> list[str]:
    """Lists the tags that have a card, e.g. `msff_resnet101.coco2014_448`."""
    return sorted(path.stem for path in (HUB_CARDS / 'tags').glob('*.yaml'))


def images(folder: Path) -> dict[str, Path]:
    """Finds the images of a run folder's card.

    Args:
        folder: Run folder, see `render`.

    Returns:
        The path of each image by the name that the card gives it.
    """
    found = {name: Path(folder, name) for name in RUN_IMAGES if Path(folder, name).is_file()}
    if str(_read_config(Path(folder, 'config.json')).get('architecture')).startswith('msff_'):
        found[FIGURE] = HUB_CARDS / FIGURE
    return found


def render(folder: Path, repo_id: str | None = None) -> str:
    """Renders the card of a trained model.

    Args:
        folder: Folder with `config.json` and, after an evaluation, `results.json`. The weights are not read.
        repo_id: Repository of the card, `ORG/NAME`. If NAME is a tag, and the model has the tag's architecture and
            labels, the card includes what is known of the tag.

    Returns:
        The text of `README.md`. It refers to the `images` by name.

    Raises:
        InputError: A file is missing or damaged, or the repository id is invalid.
    """
    path = Path(folder, 'config.json')
    config = _read_config(path)
    try:
        with torch.device('meta'):
            model = timm.create_model(f'local-dir:{folder}', pretrained=False)
        cfg = PretrainedCfg(**model.pretrained_cfg)
        size = measure_size(model, cfg.input_size)
        label_names = [str(name) for name in cfg.label_names]
        check_label_names(label_names, model.num_classes)
    except Exception as e:  # a damaged configuration: exceptions of many types
        raise InputError(f'{path}: describes no model that can be created ({one_line(e)}).') from e
    weights, results_path = Path(folder, 'model.safetensors'), Path(folder, 'results.json')
    size['num_bytes'] = weights.stat().st_size if weights.is_file() else None
    about = {}
    name = (repo_id or '').rpartition('/')[2]
    if name in tags():
        registered = timm.get_pretrained_cfg(name)
        if (registered.architecture, list(registered.label_names)) == (cfg.architecture, label_names):
            about = _read_about(name)
    return _render(
        cfg,
        label_names,
        size,
        results=Results.from_json(results_path) if results_path.is_file() else None,
        path=results_path,
        thresholds=config.get('thresholds'),
        about=about,
        repo_id=repo_id,
        source=f'hf-hub:{repo_id or "ORG/NAME"}',
        image_names=sorted(images(folder)),
    )


def render_tag(tag: str) -> str:
    """Renders the card of a tag from what this package knows of it.

    Args:
        tag: One of `tags()`.

    Returns:
        The text of `README.md`.

    Raises:
        InputError: There is no such tag.
    """
    if tag not in tags():
        raise unknown('tag', tag, tags())
    cfg = timm.get_pretrained_cfg(tag)
    with torch.device('meta'):
        model = timm.create_model(tag, pretrained=False)
    path = HUB_CARDS / 'results' / f'{tag}.json'
    results = Results.from_json(path) if path.is_file() else None
    return _render(
        cfg,
        list(cfg.label_names),
        {**measure_size(model, cfg.input_size), 'num_bytes': None},
        results=results,
        path=path,
        thresholds=results and results.thresholds,
        about=_read_about(tag),
        repo_id=cfg.hf_hub_id,
        source=tag if cfg.file else f'hf-hub:{cfg.hf_hub_id}',  # the package includes the file
        image_names=[FIGURE],
    )


def _read_about(tag: str) -> dict:
    """Reads what is known of a tag beyond its configuration and its results."""
    return yaml.safe_load((HUB_CARDS / 'tags' / f'{tag}.yaml').read_text(encoding='utf-8'))


def _read_config(path: Path) -> dict:
    if not path.exists():
        raise InputError(f'{path.parent}: holds no {path.name}; give a folder that training saved.')
    try:
        config = json.loads(read_small(path, MAX_BYTES, 'a configuration'))
    except (ValueError, RecursionError) as e:
        raise e if isinstance(e, InputError) else InputError(f'{path}: cannot be read ({one_line(e)}).') from e
    if not isinstance(config, dict):
        raise InputError(f'{path}: holds no JSON object; give a folder that training saved.')
    return config


def _render(
    cfg: PretrainedCfg,
    label_names: list[str],
    size: dict,
    results: Results | None,
    path: Path,
    thresholds: dict | None,
    about: dict,
    repo_id: str | None,
    source: str,
    image_names: list[str],
) -> str:
    """Fills in the template. All texts from files of others are escaped here."""
    if repo_id is not None:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as e:
            raise InputError(f'{repo_id!r} is no repository id ({one_line(e)}).') from None
    columns = ('AP', 'num_positives', 'num_negatives', 'threshold', 'temperature', 'bias')
    labels = {name: dict.fromkeys(columns) for name in label_names}
    measured = recipe = fitted = calibration = None
    evaluated, sources, settings = [], {}, ''
    try:
        if thresholds is not None:
            fitted = card_data.read_thresholds(thresholds, labels)
    except ODD as e:
        config = path.with_name('config.json')
        raise InputError(f'{config}: its thresholds are damaged ({one_line(e)}); fit them again.') from e
    try:
        if results is not None:
            measured = card_data.read_metrics(results, labels)
            calibration = card_data.read_calibration(results)
            recipe, settings = card_data.read_recipe(results), card_data.dump_settings(results)
            evaluated, sources = card_data.make_metadata(results, measured)
    except ODD as e:
        raise InputError(
            f'{path}: is damaged, or belongs to another model ({one_line(e)}); evaluate the model again.'
        ) from e
    title = (repo_id or '').rpartition('/')[2] or cfg.architecture
    data = ModelCardData(
        license=cfg.license if re.fullmatch('[a-z0-9.-]+', str(cfg.license)) else 'other',
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['timm', 'image-classification', 'multi-label-classification', 'msff-timm'],
        model_name=title if evaluated else None,
        eval_results=evaluated or None,
        **sources,
    )
    registered = timm.get_pretrained_cfg(cfg.architecture)
    card = ModelCard.from_template(
        data,
        template_path=str(HUB_CARDS / 'template.md'),
        title=escape(title),
        name=repo_id or 'ORG/NAME',
        source=source,
        architecture=cfg.architecture,  # a registered name
        paper_name=escape(registered.paper_name or ''),
        paper_url=registered.origin_url or '',
        is_msff=cfg.architecture.startswith('msff_'),
        preprocessing=_escape_all({**cfg.to_dict(), 'label_names': None}),
        labels=[{'name': escape(name), **values} for name, values in labels.items()],
        size=size,
        measured=_escape_all(measured),
        recipe=_escape_all(recipe),
        settings=settings,
        thresholds=_escape_all(fitted),
        calibration=_escape_all(calibration),
        about=about,
        images=image_names,
    )
    return str(card)


def escape(value: object) -> str:
    """Makes text that Markdown shows as it is, on one line, without markup, links, formulas or HTML."""
    text = html.escape(str(card_data.clean(str(value))), quote=False)
    # Some dialects of Markdown do not know these characters behind a backslash.
    text = re.sub(r'[:~$@]|(?<=www)\.', lambda found: f'&#{ord(found[0])};', text, flags=re.IGNORECASE)
    return re.sub(r'([\\`*_\[\]|])', r'\\\1', text)


def _escape_all(value: object) -> object:
    """Escapes all texts in lists and in the values of dictionaries; keys are ours."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, dict):
        return {key: _escape_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escape_all(item) for item in value]
    return value
