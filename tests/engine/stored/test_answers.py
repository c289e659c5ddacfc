"""The forms in which answers are stored, and what proves a row's place and image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdscale.engine.stored.answers import Form, checksums, witness
from kdscale.errors import RecipeError


class TestForm:
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.25, -3.0], [0.0, 4.0, 4.5, -2.0, 1.0]])
    device = torch.device("cpu")

    def through(self, form: Form) -> torch.Tensor:
        rows = np.zeros(2, form.dtype)
        for name, column in form.packed(self.logits).items():
            rows[name] = column
        return form.logits(rows, self.device)

    def test_what_is_left_out_shares_its_weight_evenly(self) -> None:
        back = self.through(Form(2, "fp32", 5))
        before, after = self.logits.softmax(1), back.softmax(1)
        kept = self.logits.topk(2).indices
        torch.testing.assert_close(back.gather(1, kept), self.logits.gather(1, kept))
        torch.testing.assert_close(after.gather(1, kept), before.gather(1, kept))
        rest = after.scatter(1, kept, torch.nan)
        expected = (1 - before.gather(1, kept).sum(1)) / 3
        for row, share in zip(rest, expected, strict=True):
            torch.testing.assert_close(row[~row.isnan()], share.expand(3))

    @pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
    def test_a_label_alone_is_certain_and_finite(self, temperature: float) -> None:
        back = self.through(Form("label", "fp16", 5))
        assert back.isfinite().all()
        expected = torch.nn.functional.one_hot(self.logits.argmax(1), 5).float()
        assert torch.equal((back / temperature).softmax(1), expected)

    def test_every_logit(self) -> None:
        assert torch.equal(self.through(Form("all", "fp32", 5)), self.logits)
        torch.testing.assert_close(self.through(Form("all", "fp16", 5)), self.logits, rtol=1e-3, atol=1e-3)

    def test_how_many_can_be_kept(self) -> None:
        with pytest.raises(RecipeError, match=r"5 of 5 classes cannot be kept: give 1 to 4, or 'all'"):
            Form(5, "fp16", 5)

    def test_a_row_of_another_place_has_another_checksum(self) -> None:
        rows = np.zeros(2, Form("all", "fp32", 5).dtype)
        first, second = checksums(rows, np.array([7, 8]))
        assert first != second

    def test_a_witness_tells_flips_shifts_and_mixes_apart(self) -> None:
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        for other in (images.flip(3), images.flip(2), images.roll(1, 3), 0.9 * images + 0.1 * images.flip(0)):
            assert ((witness(images) - witness(other)).abs() > 1e-3).any()
