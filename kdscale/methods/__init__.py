"""The methods, a file each. Importing this room registers their kinds, so that JSON can be read."""

from .base import Distiller, Method
from .deit import Deit
from .kd import KD
from .shake import Shake
from .supervised import Supervised

__all__ = ["KD", "Deit", "Distiller", "Method", "Shake", "Supervised"]
