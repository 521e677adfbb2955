"""Multi-scale feature fusion for multi-label image classification, as timm models.

Importing this package registers its models with `timm.create_model`; it downloads nothing.
"""

__version__ = '0.1.0'

from . import models as models
