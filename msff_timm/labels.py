"""Names of labels, and fine-tuning that knows them: shared labels keep what a model has learnt of them."""

from collections.abc import Sequence

import torch
import torch.nn as nn

from .errors import InputError

__all__ = ['COCO_LABELS', 'SCENES_LABELS', 'VOC_LABELS', 'match_labels', 'names_of', 'relabel']

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

# COCO's name for VOC's; case, spaces and punctuation are left aside: `dining table` is `diningtable`.
SYNONYMS = {'aeroplane': 'airplane', 'motorbike': 'motorcycle', 'sofa': 'couch', 'tvmonitor': 'tv'}


def names_of(model: nn.Module) -> list[str]:
    """Returns the names of a model's labels in the order of the logits, or numbers where it has none."""
    return list(model.pretrained_cfg.get('label_names') or map(str, range(model.num_classes)))


def match_labels(known: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Finds for each wanted label the known one that means the same: by name, else by COCO and VOC synonyms.

    Returns:
        Known label of each wanted one that has any; no known label is given twice.
    """
    matched = {name: name for name in wanted if name in known}
    free = {_meaning(name): name for name in known if name not in matched}
    for name in wanted:
        if name not in matched and _meaning(name) in free:
            matched[name] = free.pop(_meaning(name))
    return {name: matched[name] for name in wanted if name in matched}


def _meaning(name: str) -> str:
    plain = ''.join(character for character in name.casefold() if character.isalnum())
    return SYNONYMS.get(plain, plain)


@torch.no_grad()
def relabel(model: nn.Module, label_names: Sequence[str]) -> dict[str, str]:
    """Gives a model a new set of labels in place, with the embeddings and classifiers of those that it knows.

    What belongs to a label is its row in the tensors that the model's `pretrained_cfg['classifier']` names; the rows of
    labels that the model does not know are drawn anew.

    Args:
        model: With `label_names` in its `pretrained_cfg`.
        label_names: The new labels, in the order of the logits.

    Returns:
        Old name of each label that was carried over.

    Raises:
        InputError: The new names repeat, the model has no names, or its labels have no rows of their own.
    """
    label_names, known = list(label_names), list(model.pretrained_cfg.get('label_names') or ())
    if len(set(label_names)) != len(label_names):
        raise InputError('label names repeat: each label needs a name of its own.')
    if len(known) != model.num_classes:
        raise InputError('the model does not say what its labels are called: its label_names are missing.')
    carried = match_labels(known, label_names)
    sources = [known.index(old) for old in carried.values()]
    targets = [label_names.index(new) for new in carried]

    rows = {name: tensor[sources].clone() for name, tensor in _label_tensors(model).items()}
    model.reset_classifier(len(label_names))
    for name, tensor in _label_tensors(model).items():
        tensor[targets] = rows[name]
    model.pretrained_cfg.update(num_classes=len(label_names), label_names=label_names)
    return carried


def _label_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the tensors that hold a row for each label."""
    modules = model.pretrained_cfg['classifier']
    modules = (modules,) if isinstance(modules, str) else modules
    state = model.state_dict()
    tensors = {name: tensor for name, tensor in state.items() if name.rpartition('.')[0] in modules}
    for name, tensor in tensors.items():
        if len(tensor) != model.num_classes:
            raise InputError(
                f'{name} holds {len(tensor)} rows for {model.num_classes} labels: they cannot be told apart.'
            )
    return tensors
