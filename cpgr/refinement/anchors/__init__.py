"""RefCLIP: expressions find their anchors by contrast between images (Jin et al., CVPR 2023)."""

from .refiner import AnchorRefiner
from .settings import AnchorConfig

__all__ = ["AnchorConfig", "AnchorRefiner"]
