"""The methods, a file each. Importing this room registers their kinds, so that JSON can be read."""

from .alpha_divergence import AlphaDivergence
from .at import AT
from .ban import BAN
from .base import Distiller, Method
from .crd import Crd
from .deit import Deit
from .dkd import DKD
from .dml import DML
from .eskd import ESKD
from .fitnets import FitNets
from .head_only import HeadOnly
from .kd import KD
from .kdcl import KDCL
from .multi_kd import MultiKD
from .okddip import OKDDip
from .one import ONE
from .rco import RCO
from .reverse_kd import ReverseKD
from .sftn import Sftn
from .shake import Shake
from .stage_by_stage import StageByStage
from .supervised import Supervised
from .takd import TAKD

__all__ = [
    "AT",
    "BAN",
    "DKD",
    "DML",
    "ESKD",
    "KD",
    "KDCL",
    "ONE",
    "RCO",
    "TAKD",
    "AlphaDivergence",
    "Crd",
    "Deit",
    "Distiller",
    "FitNets",
    "HeadOnly",
    "Method",
    "MultiKD",
    "OKDDip",
    "ReverseKD",
    "Sftn",
    "Shake",
    "StageByStage",
    "Supervised",
]
