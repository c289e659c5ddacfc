"""What the variants of born-again networks take of a teacher: how sure it is, or its answer with the wrong classes exchanged.

Furlanello et al., "Born-Again Neural Networks", ICML 2018, section 3.2, asks which of the two makes distillation work (equations 10 and 11).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import wide


@torch.no_grad()
def confidence(teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The largest of softmax(teacher/T) a row, whether it is the label's or not. Logits [N,C]; returns [N]."""
    return F.softmax(wide(teacher) / temperature, dim=-1).amax(-1)


@torch.no_grad()
def permuted(teacher: Tensor, words: Tensor) -> Tensor:
    """Each row's logits exchanged at random among the classes that are not its largest, which stays. [N,C]; returns the same.

    Exchanged logits are exchanged probabilities, at every temperature. ``words`` [N,C] int64: random words, of which the order
    in a row is the row's permutation; a row's largest class has no use for its own.
    """
    top = teacher.argmax(-1, keepdim=True)
    last = torch.full_like(top, torch.iinfo(torch.int64).max)
    giving = words.scatter(-1, top, last).argsort(-1)[..., :-1]
    taking = torch.arange(teacher.shape[-1] - 1, device=teacher.device).expand_as(giving)
    taking = taking + (taking >= top)  # all classes in their order, without the largest
    return teacher.scatter(-1, taking, teacher.gather(-1, giving))
