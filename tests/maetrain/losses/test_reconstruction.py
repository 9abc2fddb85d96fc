"""The masked autoencoder's loss against a loop by hand."""

import pytest
import torch

from maetrain.losses.reconstruction import hidden_mse, normalise_units

from ..small import noise

COUNTS = torch.tensor([[[True, False], [True, True]], [[False, False], [True, False]]])


def test_the_loss_is_the_mean_of_squared_errors() -> None:
    pred, target = noise(2, 4, 5), noise(2, 4, 5, seed=1)
    errors = [(float(p) - float(t)) ** 2 for p, t in zip(pred.flatten(), target.flatten(), strict=True)]
    assert hidden_mse(pred, target).item() == pytest.approx(sum(errors) / len(errors), rel=1e-6)


def test_values_that_do_not_count_have_no_influence_and_no_gradient() -> None:
    pred, target = noise(2, 2, 2).requires_grad_(), noise(2, 2, 2, seed=1)
    loss = hidden_mse(pred, target, COUNTS)
    of_samples = [float((pred - target)[b][COUNTS[b]].square().mean()) for b in range(2)]
    assert loss.item() == pytest.approx(sum(of_samples) / 2, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, pred)
    assert (gradient[~COUNTS] == 0).all() and (gradient[COUNTS] != 0).all()
    for far in (1e6, float("inf"), float("nan")):
        target[~COUNTS] = far
        again = hidden_mse(pred, target, COUNTS)
        assert again == loss and torch.equal(torch.autograd.grad(again, pred)[0], gradient)


def test_the_loss_of_a_batch_is_the_mean_of_its_samples_losses_whatever_counts_of_each() -> None:
    pred, target = noise(3, 2, 2), noise(3, 2, 2, seed=1)
    counts = torch.cat([COUNTS, torch.zeros(1, 2, 2, dtype=torch.bool)])  # 3 values, 1 value, none
    for chosen in (None, counts):
        alone = [
            hidden_mse(pred[b : b + 1], target[b : b + 1], None if chosen is None else chosen[b : b + 1])
            for b in range(3)
        ]
        torch.testing.assert_close(hidden_mse(pred, target, chosen), torch.stack(alone).mean())


def test_where_nothing_counts_the_loss_is_zero_not_nan() -> None:
    assert hidden_mse(noise(2, 2, 2), noise(2, 2, 2, seed=1), torch.zeros(2, 2, 2, dtype=torch.bool)) == 0


def test_the_loss_is_summed_in_float32_whatever_comes() -> None:
    pred, target = noise(2, 4, 5).bfloat16(), noise(2, 4, 5, seed=1).bfloat16()
    loss = hidden_mse(pred, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, hidden_mse(pred.float(), target.float()))


def test_normalised_units_have_mean_zero_and_variance_one_each() -> None:
    units = normalise_units(noise(2, 4, 50) * 7 + 3)
    torch.testing.assert_close(units.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(units.var(-1, correction=0), torch.ones(2, 4), atol=1e-4, rtol=0)


def test_a_flat_unit_normalises_to_zero_not_to_nan() -> None:
    assert (normalise_units(torch.full((1, 1, 8), 4.0)) == 0).all()
    assert (normalise_units(torch.full((1, 1, 1), 4.0)) == 0).all(), "a unit of one value"


def test_units_are_normalised_in_float32_whatever_comes() -> None:
    units = (noise(2, 4, 50) + 8).bfloat16()
    torch.testing.assert_close(normalise_units(units), normalise_units(units.float()))
