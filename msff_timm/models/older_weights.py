"""Weights of MSFF that were trained with other defaults."""

import json
from typing import Any

import torch

__all__ = ['check_weights']


def check_weights(state_dict: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Rejects weights that were trained with another default of `fusion_norm`, `fusion_gate` and so on."""
    present: dict[str, torch.Tensor] = model.state_dict()
    args: dict[str, bool | int] = {}
    has_one = 'pooled_classifier.linear.weight' in state_dict
    for name in ('pooled_classifier.linear.weight', 'pooled_classifier.linear.bias'):
        if name in state_dict and len(state_dict[name]) != model.num_classes:
            del state_dict[name]  # timm does so for the modules that `pretrained_cfg` names
    if model.label_embed is not None and 'classifier.weight' in state_dict:
        if has_one != ('pooled_classifier.linear.weight' in present):
            args['pooled_classifier'] = has_one
    for argument, name in (('fusion_norm', 'projection.norm1.weight'), ('fusion_gate', 'scale_attention.gate')):
        if name in present and name not in state_dict:
            args[argument] = False
    classifier = state_dict.get('classifier.weight')
    if model.label_embed is not None and classifier is not None and classifier.ndim == 2:
        if classifier.shape[0] == model.num_classes > model.label_embed.num_embeddings:
            args['max_queries'] = 0
    if args:
        in_python = ', '.join(f'{key}={value}' for key, value in args.items())
        in_json = json.dumps(args)[1:-1]
        raise ValueError(
            f'the weights were trained with another default: create the model with {in_python}, or add {in_json} to'
            ' model_args in their config.json.'
        )
    return state_dict
