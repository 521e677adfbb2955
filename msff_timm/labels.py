"""Names of labels: who has them, which mean the same, and how a model gets other ones.

A model keeps its label names where timm does, in `pretrained_cfg['label_names']`. The functions of this file are the
only ones that read and write them there.
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
    'check_names',
    'describe_matches',
    'forget_names',
    'has_own_rows',
    'match_labels',
    'names_of',
    'relabel',
    'set_names',
    'stored_names',
    'thresholds_of',
]

# COCO's 80 in the order of their ids, which run from 1 to 90 with gaps
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
# VOC's 20 in the order of their names
VOC_LABELS: tuple[str, ...] = tuple(
    (
        'aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant '
        'sheep sofa train tvmonitor'
    ).split()
)
# The shapes of the demo's scenes
SCENES_LABELS: tuple[str, ...] = tuple(
    'arrow bolt crescent cross dumbbell heart hourglass pill ring square star triangle'.split()
)

# Ignored between letters, and nowhere else
SEPARATORS = re.compile('[ _-]+')
# COCO's name for VOC's; `dining table` and `diningtable` are the same anyway.
SYNONYMS = {'aeroplane': 'airplane', 'motorbike': 'motorcycle', 'sofa': 'couch', 'tvmonitor': 'tv'}


def stored_names(model: nn.Module) -> list[str] | None:
    """Returns the label names that a model has, in the order of the logits, or None where it has none.

    Names that are not as many as the logits belong to another classifier, e.g. one that timm's `reset_classifier` has
    replaced, and count as none. A name that several labels share gets the number of its logit: `crane (134)`.
    """
    model = unwrap_model(model)
    names = list((getattr(model, 'pretrained_cfg', None) or {}).get('label_names') or ())
    if not names or len(names) != model.num_classes:
        return None
    counts = Counter(names)
    return [f'{name} ({k})' if counts[name] > 1 else name for k, name in enumerate(names)]


def names_of(model: nn.Module) -> list[str]:
    """Returns the names of a model's labels in the order of the logits, or numbers where it has none."""
    return stored_names(model) or [str(k) for k in range(unwrap_model(model).num_classes)]


def thresholds_of(model: nn.Module) -> list[float] | None:
    """Returns the threshold of each label that `msff_timm.hub.load` found, or None where the model has none."""
    model = unwrap_model(model)
    thresholds = getattr(model, 'thresholds', None)
    return thresholds if thresholds and len(thresholds) == model.num_classes else None


def check_names(label_names: Sequence[str], num_classes: int) -> None:
    """Checks that each logit has a name of its own.

    Raises:
        InputError: Label names repeat, or their number is not the number of logits.
    """
    if len(label_names) != num_classes or len(set(label_names)) != num_classes:
        repeated = [name for name, count in Counter(label_names).items() if count > 1]
        raise InputError(
            f'{len(label_names)} label names for {num_classes} logits'
            + (f', {repeated[0]!r} more than once' if repeated else '')
            + ': each logit needs a name of its own.'
        )


def set_names(model: nn.Module, label_names: Sequence[str]) -> None:
    """Gives the logits of a model their names. Thresholds that it has for other labels are dropped.

    After `reset_classifier` of a plain timm model with as many labels as before nothing shows that the names have
    changed: call this.

    Raises:
        InputError: As `check_names` does.
    """
    check_names(label_names, model.num_classes)
    _update(model, num_classes=len(label_names), label_names=list(label_names))


def forget_names(model: nn.Module) -> None:
    """Drops the names and thresholds of a model's labels, which are no longer those of its logits."""
    if getattr(model, 'pretrained_cfg', None):
        _update(model, label_names=None)


def _update(model: nn.Module, **changes) -> None:
    # A new dictionary: whoever else holds the old one keeps it as it is.
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **changes}
    model.thresholds = None


def match_labels(known: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Finds for each wanted label the known one that means the same.

    Equal names match. Other names match where they differ in case alone, or in spaces, `_` and `-` between letters
    (`dining table`, `diningtable`, `Dining-Table`), or else where they are COCO's and VOC's names of one thing. A name
    that could match several known labels, or that several wanted labels could match, matches none.

    Returns:
        Known label of each wanted one that has any; no known label is given twice.
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
    """Describes in a line each match of `match_labels` that is not by equal names."""
    return [f'{name!r} is taken for {known!r}.' for name, known in matched.items() if name != known]


def _unambiguous(names: Sequence[str], meaning: Callable[[str], str]) -> dict[str, str]:
    """Returns the name of each meaning that no other name has."""
    counts = Counter(map(meaning, names))
    return {meaning(name): name for name in names if counts[meaning(name)] == 1}


def _plain(name: str) -> str:
    """Normalises what does not change a name's meaning: Unicode's spelling, case, separators between letters.

    Compatibility forms stay apart, since they make other names (`m²`, `m2`), but for the widths of East Asian text.
    So do `ß` and `ss`, which are one only for `casefold`.
    """
    text = ''.join(unicodedata.normalize('NFKC', c) if unicodedata.east_asian_width(c) in 'FH' else c for c in name)
    text = unicodedata.normalize('NFC', unicodedata.normalize('NFC', text).lower())
    is_letter = []
    for character in text:
        kind = unicodedata.category(character)[0]
        # A mark, e.g. a vowel sign of Hindi, is a part of the letter before it.
        is_letter.append(kind == 'L' or (kind == 'M' and is_letter[-1:] == [True]))

    def between_letters(found: re.Match) -> str:
        start, end = found.span()
        return '' if 0 < start and end < len(text) and is_letter[start - 1] and is_letter[end] else found[0]

    return SEPARATORS.sub(between_letters, text)


def _thing(name: str) -> str:
    plain = _plain(name)
    return SYNONYMS.get(plain, plain)


def has_own_rows(model: nn.Module, num_classes: int) -> bool:
    """Returns whether each of so many labels would have rows of its own in the model's tensors."""
    return not getattr(model, 'shares_queries', lambda _: False)(num_classes)


@torch.no_grad()
def relabel(model: nn.Module, label_names: Sequence[str]) -> dict[str, str]:
    """Gives a model a new set of labels in place, with the embeddings and classifiers of those that it knows.

    What belongs to a label is its row in the tensors that the model's `pretrained_cfg['classifier']` names; the rows of
    labels that the model does not know are drawn anew. After an error the model is as it was.

    Args:
        model: With `label_names` in its `pretrained_cfg`.
        label_names: The new labels, in the order of the logits.

    Returns:
        Old name of each label that was carried over.

    Raises:
        InputError: The new names repeat, the model has no names, or its labels have no rows of their own.
    """
    label_names, known = list(label_names), stored_names(model)
    if len(set(label_names)) != len(label_names):
        raise InputError('label names repeat: each label needs a name of its own.')
    if known is None:
        raise InputError('the model does not say what its labels are called: its label_names are missing.')
    if known == label_names:
        return dict(zip(known, known, strict=True))
    carried = match_labels(known, label_names)
    sources = [known.index(old) for old in carried.values()]
    targets = [label_names.index(new) for new in carried]

    rows = {name: tensor[sources].clone() for name, tensor in _label_tensors(model).items()}
    if not has_own_rows(model, len(label_names)):
        raise InputError(
            f'the model would have {model.max_queries} queries for {len(label_names)} labels: they could not be told'
            ' apart. Without keep_labels all of them start anew.'
        )
    model.reset_classifier(len(label_names))
    for name, tensor in _label_tensors(model).items():
        tensor[targets] = rows[name]
    set_names(model, label_names)
    return carried


def _label_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the tensors that hold a row for each label."""
    modules = model.pretrained_cfg.get('classifier') or ()
    modules = (modules,) if isinstance(modules, str) else modules
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name.rpartition('.')[0] in modules}
    if not tensors:
        raise InputError('the model does not say which of its weights belong to labels: it names no classifier.')
    for name, tensor in tensors.items():
        if len(tensor) != model.num_classes:
            raise InputError(
                f'{name} holds {len(tensor)} rows for {model.num_classes} labels: they cannot be told apart.'
            )
    return tensors
