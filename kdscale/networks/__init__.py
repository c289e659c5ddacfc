"""Networks by name, and what methods read of them. The only room that knows how a timm or transformers network is built."""

from .architecture import NetworkArchitecture
from .build import build_network
from .freezing import freeze, thaw
from .heads import FusedHead, LinearHead
from .network import FrozenNetwork, Network
from .norm import SynchronisedBatchNorm, synchronise
from .places import read_upto
from .preflight import default_floor, foreign_noise, preflight
from .sources import find_source, suggest_distilled, weights_files
from .weights import check_labels, load_weights

__all__ = [
    "FrozenNetwork",
    "FusedHead",
    "LinearHead",
    "Network",
    "NetworkArchitecture",
    "SynchronisedBatchNorm",
    "build_network",
    "check_labels",
    "default_floor",
    "find_source",
    "foreign_noise",
    "freeze",
    "load_weights",
    "preflight",
    "read_upto",
    "suggest_distilled",
    "synchronise",
    "thaw",
    "weights_files",
]
