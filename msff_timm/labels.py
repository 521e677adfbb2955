"""Label names: the sets that this package knows, which names mean the same, and how a model gets its own.

A model keeps its label names where timm does, in `pretrained_cfg['label_names']`. Only the functions below read and
write them there, so names and logits always agree in number.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
from timm.utils import unwrap_model

from .errors import InputError

__all__ = [
    'COCO_LABELS',
    'SCENES_LABELS',
    'VOC_LABELS',
    'check_label_names',
    'compute_probabilities',
    'decision_thresholds',
    'describe_matches',
    'display_names',
    'get_calibration',
    'get_label_names',
    'get_thresholds',
    'match_labels',
    'relabel',
    'set_label_names',
]

# COCO's 80 labels in the order of their ids, which run from 1 to 90 with gaps
COCO_LABELS: tuple[str, ...] = tuple(
    (
        'person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, '
        'parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, '
        'handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, '
        'skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, '
        'sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, '
        'dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, '
        'refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush'
    ).split(', ')
)
# VOC's 20 labels in alphabetical order
VOC_LABELS: tuple[str, ...] = tuple(
    (
        'aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant '
        'sheep sofa train tvmonitor'
    ).split()
)
# The 12 shapes of the demo's scenes
SCENES_LABELS: tuple[str, ...] = tuple(
    'arrow bolt crescent cross dumbbell heart hourglass pill ring square star triangle'.split()
)

# Ignored between two letters only
SEPARATORS = re.compile('[ _-]+')
# COCO's name of each VOC label; `dining table` and `diningtable` match anyway.
SYNONYMS = {'aeroplane': 'airplane', 'motorbike': 'motorcycle', 'sofa': 'couch', 'tvmonitor': 'tv'}


def get_label_names(model: nn.Module) -> list[str] | None:
    """Returns the label names of a model in the order of its logits, or None if it has none.

    Stored names that differ from the logits in number are ignored: they belong to a classifier that timm's
    `reset_classifier` has replaced. A name that several labels share gets the number of its logit: `crane (134)`.
    """
    model = unwrap_model(model)
    names = list((getattr(model, 'pretrained_cfg', None) or {}).get('label_names') or ())
    if not names or len(names) != model.num_classes:
        return None
    counts = Counter(names)
    return [f'{name} ({k})' if counts[name] > 1 else name for k, name in enumerate(names)]


def display_names(model: nn.Module) -> list[str]:
    """Returns the label names of a model, or the numbers of its logits if it has no names."""
    return get_label_names(model) or [str(k) for k in range(unwrap_model(model).num_classes)]


def compute_probabilities(model: nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """Computes the probabilities of a model's labels: calibrated ones, if the model has temperatures.

    Args:
        model: Model from `msff_timm.hub.load` or `timm.create_model`.
        logits: Logits (..., K) of the model.

    Returns:
        Probabilities (..., K) on the CPU; without temperatures, the sigmoid of the logits.
    """
    calibration, logits = get_calibration(model), logits.cpu()
    if calibration is None:
        return logits.sigmoid()
    temperatures, biases = (torch.tensor(values, dtype=torch.float64) for values in calibration)
    return (logits / temperatures + biases).sigmoid()


def decision_thresholds(model: nn.Module, threshold: float | None = None) -> list[float]:
    """Returns the threshold that each probability of `compute_probabilities` has to exceed.

    Args:
        model: Model as there.
        threshold: One threshold for all labels; None for each label's own, or 0.5 where the model has none. The stored
            ones are of uncalibrated probabilities, and are calibrated like these.
    """
    stored = get_thresholds(model) if threshold is None else None
    if stored is None:
        return [0.5 if threshold is None else threshold] * unwrap_model(model).num_classes
    if get_calibration(model) is None:
        return stored
    return compute_probabilities(model, torch.tensor(stored, dtype=torch.float64).logit()).tolist()


def get_calibration(model: nn.Module) -> tuple[list[float], list[float]] | None:
    """Returns the temperature and the bias of each label that `msff_timm.hub.load` found, or None if there are none."""
    model = unwrap_model(model)
    calibration = getattr(model, 'calibration', None)
    return calibration if calibration and len(calibration[0]) == model.num_classes else None


def get_thresholds(model: nn.Module) -> list[float] | None:
    """Returns the threshold of each label that `msff_timm.hub.load` found, or None if there are none.

    They are thresholds of uncalibrated probabilities, i.e. of the sigmoid of the logits.
    """
    model = unwrap_model(model)
    thresholds = getattr(model, 'thresholds', None)
    return thresholds if thresholds and len(thresholds) == model.num_classes else None


def set_label_names(model: nn.Module, label_names: Sequence[str] | None) -> None:
    """Sets the label names of a model and drops its thresholds and temperatures, which belong to the old labels.

    A plain timm model keeps its old names in `reset_classifier`, so call this after it.

    Args:
        model: Model to change.
        label_names: Names in the order of the logits, or None to drop the names.

    Raises:
        InputError: See `check_label_names`.
    """
    if label_names is not None:
        check_label_names(label_names, model.num_classes)
        changes = dict(num_classes=len(label_names), label_names=list(label_names))
    elif getattr(model, 'pretrained_cfg', None):
        changes = dict(label_names=None)
    else:
        return  # a model under construction
    # Other models may share the old dictionary.
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **changes}
    model.thresholds = model.calibration = None


def check_label_names(label_names: Sequence[str], num_classes: int) -> None:
    """Checks that each logit has a name of its own.

    Raises:
        InputError: The names repeat, or they differ from the logits in number.
    """
    if len(label_names) != num_classes or len(set(label_names)) != num_classes:
        repeated = [name for name, count in Counter(label_names).items() if count > 1]
        raise InputError(
            f'{len(label_names)} label names for {num_classes} logits'
            + (f', {repeated[0]!r:.99} more than once' if repeated else '')
            + ': each logit needs a name of its own.'
        )


def match_labels(known: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Finds the known label that means the same as each wanted label.

    Equal names match first. Then names match that differ only in case, or in spaces, `_` and `-` between letters
    (`dining table`, `diningtable`, `Dining-Table`). Last, COCO's and VOC's names of the same object match. An ambiguous
    name, with several candidates on either side, matches nothing.

    Args:
        known: Names to choose from.
        wanted: Names to find.

    Returns:
        The known name by wanted name. Wanted names without a match are left out; no known name occurs twice.
    """
    matched = {name: name for name in wanted if name in set(known)}
    for meaning in (_plain, _thing):
        known_by, wanted_by = _unambiguous(known, meaning), _unambiguous(wanted, meaning)
        taken = set(matched.values())
        for key, name in wanted_by.items():
            if name not in matched and key in known_by and known_by[key] not in taken:
                matched[name] = known_by[key]
    return {name: matched[name] for name in wanted if name in matched}


def describe_matches(matched: dict[str, str]) -> list[str]:
    """Describes each match of `match_labels` between different names in one line."""
    return [f'{name!r} is matched to {known!r}.' for name, known in matched.items() if name != known]


def _unambiguous(names: Sequence[str], meaning: Callable[[str], str]) -> dict[str, str]:
    """Returns names by their meaning, without meanings that several names share."""
    counts = Counter(map(meaning, names))
    return {meaning(name): name for name in names if counts[meaning(name)] == 1}


def _plain(name: str) -> str:
    """Normalises Unicode composition, case and separators between letters, which do not change a name's meaning.

    East Asian full and half widths are normalised; other compatibility forms stay different (`m²`, `m2`). `ß` and `ss`
    stay different too, unlike in `casefold`.
    """
    text = ''.join(unicodedata.normalize('NFKC', c) if unicodedata.east_asian_width(c) in 'FH' else c for c in name)
    text = unicodedata.normalize('NFC', unicodedata.normalize('NFC', text).lower())
    is_letter = []
    for character in text:
        kind = unicodedata.category(character)[0]
        # A mark, e.g. a Hindi vowel sign, belongs to the letter before it.
        is_letter.append(kind == 'L' or (kind == 'M' and is_letter[-1:] == [True]))

    def between_letters(found: re.Match) -> str:
        start, end = found.span()
        return '' if 0 < start and end < len(text) and is_letter[start - 1] and is_letter[end] else found[0]

    return SEPARATORS.sub(between_letters, text)


def _thing(name: str) -> str:
    plain = _plain(name)
    return SYNONYMS.get(plain, plain)


@torch.no_grad()
def relabel(model: nn.Module, label_names: Sequence[str], keep_shared: bool = True) -> dict[str, str]:
    """Gives a model a new set of labels in place.

    A kept label keeps its rows in the tensors of `pretrained_cfg['classifier']`, i.e. its embedding and its classifier.
    The rows of all other labels are initialised anew. After an error the model is unchanged.

    Args:
        model: Model to change.
        label_names: New labels in the order of the logits.
        keep_shared: Keep what the model has learnt of the labels that the old and the new set share (see
            `match_labels`). If False, labels are kept only if both sets are equal, in any order.

    Returns:
        The old name of each kept label by new name.

    Raises:
        InputError: The new names repeat. With `keep_shared` also: the model has no label names, or its labels share
            rows.
    """
    label_names, known = list(label_names), get_label_names(model)
    check_label_names(label_names, len(label_names))
    if known == label_names:
        return dict(zip(known, known, strict=True))
    shares_queries = getattr(model, 'shares_queries', lambda _: False)(len(label_names))
    if not keep_shared and (known is None or sorted(known) != sorted(label_names) or shares_queries):
        model.reset_classifier(len(label_names))
        set_label_names(model, label_names)
        return {}
    if known is None:
        raise InputError('the model has no label names, so no label can be kept: train without keep_labels.')
    kept = match_labels(known, label_names)
    sources = [known.index(old) for old in kept.values()]
    targets = [label_names.index(new) for new in kept]
    rows = {name: tensor[sources].clone() for name, tensor in _label_tensors(model).items()}
    if shares_queries:
        raise InputError(
            f'{len(label_names)} labels would share {model.max_queries} queries, so no label can be kept: train'
            ' without keep_labels.'
        )
    model.reset_classifier(len(label_names))
    for name, tensor in _label_tensors(model).items():
        tensor[targets] = rows[name]
    set_label_names(model, label_names)
    return kept


def _label_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the tensors that hold one row for each label."""
    modules = model.pretrained_cfg.get('classifier') or ()
    modules = (modules,) if isinstance(modules, str) else modules
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name.rpartition('.')[0] in modules}
    if not tensors:
        raise InputError('the model names no classifier, so no label can be kept: train without keep_labels.')
    for name, tensor in tensors.items():
        if len(tensor) != model.num_classes:
            raise InputError(
                f'{name} holds {len(tensor)} rows for {model.num_classes} labels, so no label can be kept: train'
                ' without keep_labels.'
            )
    return tensors
