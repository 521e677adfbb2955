"""The paper's modules, one file for each of its sections."""

from .classifier import ClassWiseLinear, GroupLinear
from .position import PositionEncoding, split_scales, stack_scales
from .scale_attention import FUSION_MODES, INTERPOLATIONS, HierarchicalScaleAttention, MultiScaleProjection
from .transformer import GlobalFeatureEnhancement, MultiHeadAttention, RegionSelection, TransformerLayer

__all__ = [
    'FUSION_MODES',
    'INTERPOLATIONS',
    'ClassWiseLinear',
    'GlobalFeatureEnhancement',
    'GroupLinear',
    'HierarchicalScaleAttention',
    'MultiHeadAttention',
    'MultiScaleProjection',
    'PositionEncoding',
    'RegionSelection',
    'TransformerLayer',
    'split_scales',
    'stack_scales',
]
