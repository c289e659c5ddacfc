"""Student-friendly teachers: the agreement of a teacher with a branch of student blocks that reads the teacher's features.

Park, Cha, Jeong, Kim, Han, "Learning Student-Friendly Teacher Networks for Knowledge Distillation", NeurIPS 2021. Both sides
are trained, so nothing is detached: the term pulls the teacher's answer towards what the branch can say.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .logits import kd_kl

Direction = Literal["code", "paper"]


def agreement(
    branch: Tensor, teacher: Tensor, temperature: float, direction: Direction = "code", t_squared: bool = True
) -> Tensor:
    """Divergence of the branch's and the teacher's distributions a row. Logits [N,C] each; returns [N].

    ``code``: KL(teacher || branch), as distillation programs have it. ``paper``: KL(branch || teacher), as equation 5 is
    printed. ``t_squared``: times the square of the temperature.
    """
    learner, target = (branch, teacher) if direction == "code" else (teacher, branch)
    rows = kd_kl(learner, target, temperature)
    return rows if t_squared else rows / temperature**2
