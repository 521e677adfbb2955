"""The paper's modules, one file for each of its sections."""

from .classifier import ClassWiseLinear
from .position import PositionEncoding
from .scale_attention import HierarchicalScaleAttention, MultiScaleProjection
from .transformer import GlobalFeatureEnhancement, RegionSelection

__all__ = [
    'ClassWiseLinear',
    'GlobalFeatureEnhancement',
    'HierarchicalScaleAttention',
    'MultiScaleProjection',
    'PositionEncoding',
    'RegionSelection',
]
