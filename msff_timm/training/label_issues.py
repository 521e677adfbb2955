"""Likely label errors: labels that disagree with scores of models that were not trained on them.

A label is judged by the odds of its out-of-fold probability p. An absent label is likely missing if p is high. A
present label is likely wrong if p is low compared with the share of images that have the label: p of a rare label is
low in all its images. This is the likelihood ratio of an error if as many entries of each label are wrong as missing.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ..data.splitting import stratify

__all__ = ['FEW', 'LabelIssue', 'find_label_issues', 'out_of_fold', 'unjudged']

FOLDS = 5
FEW = 5  # present or absent entries; a label with fewer is not judged
WEIGHT_DECAY = 0.3  # for features of mean square 1; chosen on the VOC 2012 subset from 0.01 to 1
STEPS = 100
GIVEN = {1: 'present', 0: 'absent', -1: 'unannotated'}
KINDS = {1: 'wrong', 0: 'missing', -1: 'unannotated'}  # by the target


@dataclass(frozen=True)
class LabelIssue:
    """An entry of the labels that is likely an error, or that is unannotated and likely present.

    Attributes:
        image: Row of the image in the targets.
        label: Index of the label.
        kind: `wrong` for a present label, `missing` for an absent one, else `unannotated`.
        given: Present, absent or unannotated.
        probability: Out-of-fold probability of the label.
        score: Log-odds of an error: 0 where the image is no evidence of one.
    """

    image: int
    label: int
    kind: str
    given: str
    probability: float
    score: float


def out_of_fold(
    features: np.ndarray, targets: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Computes logits of images by logistic regressions that were trained on the other folds.

    Args:
        features: Features (N, D) of a model that was not trained on the targets.
        targets: Targets (N, K): 1 present, 0 absent, -1 unannotated, which are masked.
        groups: Number of the group of each image (N,); a group stays in one fold, since copies of an image share their
            errors. None if each image is a group.
        seed: Seed of the folds.

    Returns:
        Logits (N, K) in float32.
    """
    units = None if groups is None else np.unique(groups, return_inverse=True)[1]
    fold_of = torch.from_numpy(stratify(targets, [1 / FOLDS] * FOLDS, units, seed))
    inputs = torch.from_numpy(features).float()
    inputs = inputs - inputs.mean(0)
    inputs /= inputs.square().sum(1).mean().sqrt().clamp(min=1e-12)
    entries = torch.from_numpy(targets)
    logits = torch.zeros(targets.shape)
    for fold in range(FOLDS):
        held_out = fold_of == fold
        weight, bias = _fit(inputs[~held_out], entries[~held_out])
        logits[held_out] = inputs[held_out] @ weight + bias
    return logits.numpy()


def _fit(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fits a logistic regression for each label; returns weights (D, K) and biases (K,)."""
    annotated, present = (targets >= 0).float(), (targets == 1).float()
    count = present.sum(0)
    bias = ((count + 0.5) / (annotated.sum(0) - count + 0.5)).log().requires_grad_()
    weight = torch.zeros(inputs.shape[1], targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn='strong_wolfe')

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(inputs @ weight + bias, present, annotated, reduction='sum')
        loss = (loss + WEIGHT_DECAY / 2 * weight.square().sum()) / len(inputs)
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def find_label_issues(logits: np.ndarray, targets: np.ndarray, most: int) -> tuple[list[LabelIssue], dict[str, int]]:
    """Ranks the entries whose logits are evidence of an error.

    An entry counts if its score is above 0: an absent or unannotated label with a probability above one half, and a
    present label with a probability below its share among the annotated images. Labels that are `unjudged` are left
    out.

    Args:
        logits: Out-of-fold logits (N, K).
        targets: Targets (N, K).
        most: Highest number of entries of each kind.

    Returns:
        Wrong and missing labels, the likeliest first, then unannotated ones; and the number that was found of each
        kind.
    """
    present, absent = ((targets == value).sum(0) for value in (1, 0))
    share = np.log(np.maximum(present, 1) / np.maximum(absent, 1))
    scores = np.where(targets == 1, share - logits, logits)
    scores[:, unjudged(targets)] = -np.inf
    issues, found = [], {}
    for target, kind in KINDS.items():
        rows, columns = np.nonzero((scores > 0) & (targets == target))
        found[kind] = len(rows)
        for place in np.argsort(-scores[rows, columns], kind='stable')[:most].tolist():
            image, label = int(rows[place]), int(columns[place])
            probability = 1 / (1 + math.exp(-logits[image, label]))
            issues.append(LabelIssue(image, label, kind, GIVEN[target], probability, float(scores[image, label])))
    return sorted(issues, key=lambda issue: (issue.kind == KINDS[-1], -issue.score)), found


def unjudged(targets: np.ndarray) -> np.ndarray:
    """Returns whether each label (K,) has too few present or absent entries to be judged."""
    return np.minimum((targets == 1).sum(0), (targets == 0).sum(0)) < FEW
