from __future__ import annotations

import torch

from kdscale.losses.features import attention, attention_transfer, hint, same_size


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_larger_map_is_averaged_down() -> None:
    large, small = maps(2, 3, 8, 8), maps(2, 5, 4, 4)
    pooled = large.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    student, teacher = same_size(large, small)
    torch.testing.assert_close(student, pooled)
    assert teacher is small
    student, teacher = same_size(small, large)
    torch.testing.assert_close(teacher, pooled)
    assert student is small
    assert same_size(small, small) == (small, small)


def test_attention_is_a_unit_vector_that_knows_neither_sign_nor_scale() -> None:
    features = maps(3, 4, 5, 5)
    found = attention(features)
    assert found.shape == (3, 25)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(attention(-7 * features), found)
    assert not attention(torch.zeros(2, 4, 3, 3)).any()


def test_maps_are_brought_to_one_size_before_they_are_squared() -> None:
    student, teacher = maps(2, 3, 8, 8), maps(2, 5, 4, 4, seed=1)
    pooled = student.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(attention_transfer(student, teacher), attention_transfer(pooled, teacher))


def test_what_agrees_costs_nothing() -> None:
    features = maps(2, 3, 4, 4)
    assert hint(features, features).tolist() == [0, 0]
    assert (attention_transfer(features.repeat(1, 2, 1, 1), features) < 1e-12).all()


def test_an_image_costs_the_same_in_any_company() -> None:
    student, teacher = maps(3, 4, 6, 5), maps(3, 4, 6, 5, seed=1)
    for loss in (hint, attention_transfer):
        alone = torch.cat([loss(student[i : i + 1], teacher[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(loss(student, teacher), alone)
    torch.testing.assert_close(hint(student, teacher).mean(), (student - teacher).square().mean())


def test_half_precision_does_not_overflow() -> None:
    large = maps(2, 3, 4, 4).mul(1e3).half()
    assert attention_transfer(large, large.flip(0)).isfinite().all()
    assert hint(large, -large).dtype == torch.float32
    assert hint(large, -large).isfinite().all()
