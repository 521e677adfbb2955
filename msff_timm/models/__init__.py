"""The models: importing this package registers them with timm."""

from . import msff as msff
from . import peers as peers
