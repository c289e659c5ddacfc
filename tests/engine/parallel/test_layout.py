"""What an optimizer keeps comes back in the layout of memory that its parameter has: fused steps walk memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdscale.engine.optim import build_optimizer
from kdscale.engine.parallel import Session, Wrapped, wrap
from kdscale.recipe import SGD, AdamW


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, batch: Tensor, taught: object) -> dict[str, Tensor]:
        return {"task": self.head(self.conv(batch).mean((2, 3))).square().mean()}


def made(session: Session, value: SGD | AdamW, layout: torch.memory_format) -> Wrapped:
    torch.manual_seed(0)
    module = Small().to(memory_format=layout)  # type: ignore[call-overload]
    named = dict(module.named_parameters())
    groups = [{"names": list(named), "params": list(named.values()), "scale": 1.0, "weight_decay": 0.01}]
    return wrap(session, module, groups, lambda groups: build_optimizer(groups, value=value))


def step(wrapped: Wrapped, number: int) -> None:
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(number))
    wrapped.accumulate(images, {}, 1.0, last=True)  # type: ignore[arg-type]
    wrapped.update(None)


@pytest.mark.parametrize("value", [SGD(0.1), AdamW(1e-2)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_the_step_after_a_resume_is_bit_equal(session: Session, value: SGD | AdamW, layout: torch.memory_format) -> None:
    whole, again = made(session, value, layout), made(session, value, layout)
    for number in range(3):
        step(whole, number)
    again.module.load_state_dict(whole.module.state_dict())
    again.load_optimizer_state(*whole.optimizer_state())
    step(whole, 3)
    step(again, 3)
    for name, parameter in whole.module.named_parameters():
        assert torch.equal(parameter, again.module.get_parameter(name)), name


def test_the_next_backward_finds_moments_of_its_own_layout(session: Session) -> None:
    wrapped = made(session, AdamW(1e-2), torch.channels_last)
    step(wrapped, 0)
    wrapped.load_optimizer_state(*wrapped.optimizer_state())
    weight = wrapped.module.conv.weight  # type: ignore[union-attr]
    assert wrapped.state_of(weight)["exp_avg"].stride() == weight.stride()
