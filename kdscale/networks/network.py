"""A network as methods and the engine see it: images in, logits and taps out, whatever library its body is from.

It brings images from the data's normalisation and size to its own, so student and teacher may each have theirs. ``body`` is
the plain module: its state dict has exactly the architecture's keys. Everything, spans too, goes through ``forward``, for
compilation (``network.compile()``, in place) and the back-ends take hold of a module's call and of nothing else.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import NetworkError
from ..types import Normalisation, Outputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .architecture import NetworkArchitecture
    from .noise import Noise
    from .reading import Reader, Span, Taps


MANY = {"stages": re.compile(r"stage\d+"), "stages.pre": re.compile(r"stage\d+\.pre")}
"""Words for several taps."""


class Network(nn.Module):
    """``name``: as recipes say it; ``size``: pixels of a side that images are brought to, ``None`` where any will do."""

    scale: Tensor | None  # [3,1,1]
    shift: Tensor | None  # [3,1,1]

    def __init__(
        self,
        name: str,
        body: nn.Module,
        reader: Reader,
        architecture: NetworkArchitecture,
        *,
        noise: Noise,
        normalisation: Normalisation,
        size: int | None,
    ) -> None:
        super().__init__()
        self.name, self.body, self.architecture, self.size = name, body, architecture, size
        self._reader, self._noise = reader, noise
        self._shapes: dict[str, tuple[int, ...]] = {}
        scale, shift = _renormalisation(normalisation, (architecture.mean, architecture.std))
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor, taps: Taps = (), *, span: Span | None = None) -> Outputs:
        """``images`` [B,3,H,W]. Logits [B,C] and the taps that are named. ``span`` is :meth:`run`'s."""
        self._check(taps)
        if span is None:
            return self._reader.read(self.body, self._entered(images), taps)
        first, stop = self._span(*span)
        cut, outputs = self._reader.run(self.body, self._entered(images, first), (first, stop), taps)
        if cut is not None:
            outputs.taps["cut"] = cut
        return outputs

    @overload
    def run(self, x: Tensor, after: str | None = None, upto: None = None, taps: Taps = ()) -> Outputs: ...
    @overload
    def run(self, x: Tensor, after: str | None = None, *, upto: str, taps: tuple[()] = ()) -> Tensor: ...  # type: ignore[overload-overlap]
    @overload
    def run(self, x: Tensor, after: str | None = None, *, upto: str, taps: Taps) -> Outputs: ...
    def run(self, x: Tensor, after: str | None = None, upto: str | None = None, taps: Taps = ()) -> Tensor | Outputs:
        """The blocks that follow ``after`` (``None``: from the images) up to ``upto`` with it (``None``: to the logits).

        Cut short, it gives the last block's map; with ``taps``, outputs without logits whose taps hold that map as 'cut'.
        A tap outside the span is not there. The stem runs with the first block, a final norm with the last one.
        Raises NetworkError for a family that has no spans.
        """
        outputs: Outputs = self(x, taps, span=(after, upto))
        return outputs.taps["cut"] if upto is not None and not taps else outputs

    @property
    def cuts(self) -> tuple[tuple[str, ...], ...]:
        """Names of the blocks in order, grouped by stage; () for a family that has no spans."""
        return self._reader.cuts(self.body)

    def tap_names(self) -> tuple[str, ...]:
        return self._reader.taps

    def expanded(self, taps: Taps) -> Taps:
        """``taps`` with 'stages' and 'stages.pre' spelt out as all of this network's, from the shallow end."""
        spelt = ([t for t in self.tap_names() if MANY[tap].fullmatch(t)] if tap in MANY else [tap] for tap in taps)
        return tuple(dict.fromkeys(itertools.chain.from_iterable(spelt)))

    def shape(self, tap: str) -> tuple[int, ...]:
        """Shape of a tap without the batch, at the network's own image size. 'logits' is (classes,)."""
        if tap != "logits":
            self._check((tap,))
        if not self._shapes:
            outputs = self._imagined()
            self._shapes = {name: tuple(t.shape[1:]) for name, t in outputs.taps.items()}
            self._shapes["logits"] = tuple(outputs.logits.shape[1:])  # type: ignore[union-attr]
        return self._shapes[tap]

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The classifiers: 'class' and, where there is one, 'distillation'."""
        return self._reader.heads(self.body)

    @property
    def head(self) -> nn.Module:
        """The classifier (of the class token)."""
        return self.heads["class"]

    @property
    def has_distillation_head(self) -> bool:
        return self.architecture.kind == "timm" and "distillation" in self.heads

    @property
    def width(self) -> int:
        """Of 'pooled', the classifier's input."""
        return self.shape("pooled")[0]

    @property
    def classes(self) -> int:
        return self.architecture.classes

    def no_weight_decay(self) -> set[str]:
        """Names within ``body`` of the parameters without weight decay: biases, vectors, and what the body itself names."""
        named = getattr(self.body, "no_weight_decay", None)
        own = set(named()) if callable(named) else set()
        small = {name for name, p in self.body.named_parameters() if p.ndim <= 1 or name.endswith(".bias")}
        return small | {name for name, _ in self.body.named_parameters() if name in own or name.rsplit(".", 1)[-1] in own}

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles in place, with torch.compile's arguments; names in the state dict stay.

        Recompilations are counted a network: torch's limit of 8 is else shared by all networks of the process, and past it
        everything runs uncompiled without a word.
        """
        own = {"recompile_limit": 64, "isolate_recompiles": True}
        known = inspect.signature(torch.compile).parameters
        super().compile(*args, **{name: value for name, value in own.items() if name in known} | kwargs)

    def set_noise(self, key: Tensor, position: Tensor) -> None:
        """Of what drop-path and dropout are drawn in the forwards that follow: ``key`` [] int64, ``position`` [B] int64."""
        self._noise.set(key, position)

    def set_clock(self, share: Tensor) -> None:
        """``share`` [] in [0, 1]: how much of the phase is done, for rates that rise with it, in the forwards that follow."""
        self._noise.share = share

    def _entered(self, images: Tensor, first: int = 0) -> Tensor:
        """Images as the body wants them; what enters at a later block is a map already."""
        if first:
            return images
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            mode = "bilinear" if self.architecture.interpolation == "bilinear" else "bicubic"
            images = functional.interpolate(images, (self.size, self.size), mode=mode, antialias=True)
        return images

    def _check(self, taps: Taps) -> None:
        for tap in taps:
            if tap not in self._reader.taps:
                near = difflib.get_close_matches(tap, self._reader.taps, 3, 0.4) or self._reader.taps
                raise NetworkError(f"network {self.name!r} has no tap {tap!r}: it has {', '.join(near) or 'none'}")

    def _span(self, after: str | None, upto: str | None) -> tuple[int, int | None]:
        names = [name for group in self.cuts for name in group]
        for name in (after, upto):
            if names and name is not None and name not in names:
                near = difflib.get_close_matches(name, names, 3, 0.4) or names
                raise NetworkError(f"network {self.name!r} has no block {name!r}: it has {', '.join(near)}")
        first = 0 if after is None or not names else names.index(after) + 1
        return first, None if upto is None or not names else names.index(upto) + 1

    def _imagined(self) -> Outputs:
        """All taps of one image that is never computed: only shapes are carried through."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        device = next(self.body.parameters()).device
        with FakeTensorMode(allow_non_fake_inputs=True), _at_rest(self.body), torch.no_grad():
            images = torch.empty(1, *self.architecture.input_size, device=device, dtype=next(self.body.parameters()).dtype)
            return self._reader.read(self.body, images, self._reader.taps)


class FrozenNetwork(Network):
    """In eval mode for good, without gradients. ``precision='bf16'``: weights cast once, all but the batch norms'.

    Outputs are float32. Nobody optimises, wraps or saves it.
    """

    def __init__(self, *args: Any, precision: str = "fp32", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if precision == "bf16":
            _cast(self.body, torch.bfloat16)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenNetwork:
        """Stays in eval mode."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor, taps: Taps = (), *, span: Span | None = None) -> Outputs:
        with torch.autocast(images.device.type, enabled=False):
            said = super().forward(images, taps, span=span)
        logits = None if said.logits is None else _wide(said.logits)
        return Outputs(logits, {n: _wide(t) for n, t in said.taps.items()}, {n: _wide(t) for n, t in said.heads.items()})

    def _entered(self, x: Tensor, first: int = 0) -> Tensor:
        dtype = next(self.body.parameters()).dtype
        return super()._entered(_wide(x), first).to(dtype)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _cast(body: nn.Module, dtype: torch.dtype) -> None:
    """Batch norms keep float32: torch's take a bf16 map with float32 statistics, and these lose digits that matter."""
    for module in body.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)


def _renormalisation(given: Normalisation, own: Normalisation) -> tuple[Tensor | None, Tensor | None]:
    """(scale, shift) with own = given x scale + shift; (None, None) where both are the same."""
    if given == own:
        return None, None
    (mean, std), (own_mean, own_std) = (torch.tensor(given, dtype=torch.float64), torch.tensor(own, dtype=torch.float64))
    scale, shift = std / own_std, (mean - own_mean) / own_std
    return scale.float()[:, None, None], shift.float()[:, None, None]


@contextmanager
def _at_rest(body: nn.Module) -> Iterator[None]:
    """In eval mode while it lasts; each module goes back to its own."""
    modes = {module: module.training for module in body.modules()}
    body.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
