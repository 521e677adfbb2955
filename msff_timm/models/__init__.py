"""Models, which timm knows once this package is imported."""

from . import ml_decoder as ml_decoder
from . import msff as msff
from . import query2label as query2label
