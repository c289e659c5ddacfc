"""The one door to many processes. Nothing outside this folder imports Accelerate, DeepSpeed or FSDP2."""

from .session import Session, connect
from .wrap import refuse_unfit, wrap
from .wrapped import Wrapped

__all__ = ["Session", "Wrapped", "connect", "refuse_unfit", "wrap"]
