"""Modules of the models: one file per section of the paper, and those that several share."""

from .attention import AttentionLayer
from .classifier import ClassWiseLinear, GroupLinear, PooledClassifier
from .dropout import Dropout
from .position import PositionEncoding, flatten_scales, split_scales, stack_scales
from .resize import resize
from .scale_attention import FUSION_MODES, INTERPOLATIONS, HierarchicalScaleAttention, MultiScaleProjection
from .transformer import GlobalFeatureEnhancement, MultiHeadAttention, RegionSelection, TransformerLayer

__all__ = [
    'FUSION_MODES',
    'INTERPOLATIONS',
    'AttentionLayer',
    'ClassWiseLinear',
    'Dropout',
    'GlobalFeatureEnhancement',
    'GroupLinear',
    'HierarchicalScaleAttention',
    'MultiHeadAttention',
    'MultiScaleProjection',
    'PooledClassifier',
    'PositionEncoding',
    'RegionSelection',
    'TransformerLayer',
    'flatten_scales',
    'resize',
    'split_scales',
    'stack_scales',
]
