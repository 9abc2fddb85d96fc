"""The masked autoencoder's loss against a loop by hand."""

import pytest
import torch

from maetrain.losses.reconstruction import hidden_mse, normalise_units

from ..small import noise

IS_HIDDEN = torch.tensor([[True, False, True, False], [False, False, True, False]])


def test_the_loss_is_the_mean_of_squared_errors_over_hidden_values() -> None:
    pred, target = noise(2, 4, 5), noise(2, 4, 5, seed=1)
    errors = [
        (float(pred[b, g, p]) - float(target[b, g, p])) ** 2
        for b in range(2)
        for g in range(4)
        for p in range(5)
        if IS_HIDDEN[b, g]
    ]
    assert hidden_mse(pred, target, IS_HIDDEN).item() == pytest.approx(sum(errors) / len(errors), rel=1e-6)


def test_visible_units_have_no_influence_and_no_gradient() -> None:
    pred, target = noise(2, 4, 5).requires_grad_(), noise(2, 4, 5, seed=1)
    loss = hidden_mse(pred, target, IS_HIDDEN)
    (gradient,) = torch.autograd.grad(loss, pred)
    assert (gradient[~IS_HIDDEN] == 0).all() and (gradient[IS_HIDDEN] != 0).all()
    target[~IS_HIDDEN] = 1e6
    assert hidden_mse(pred, target, IS_HIDDEN) == loss


def test_the_loss_is_summed_in_float32_whatever_comes() -> None:
    pred, target = noise(2, 4, 5).bfloat16(), noise(2, 4, 5, seed=1).bfloat16()
    loss = hidden_mse(pred, target, IS_HIDDEN)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, hidden_mse(pred.float(), target.float(), IS_HIDDEN))


def test_normalised_units_have_mean_zero_and_variance_one_each() -> None:
    units = normalise_units(noise(2, 4, 50) * 7 + 3)
    torch.testing.assert_close(units.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(units.var(-1), torch.ones(2, 4), atol=1e-4, rtol=0)


def test_a_flat_unit_normalises_to_zero_not_to_nan() -> None:
    assert (normalise_units(torch.full((1, 1, 8), 4.0)) == 0).all()
