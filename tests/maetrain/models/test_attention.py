"""Attention written out gives the numbers of torch's own kernel."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from maetrain.models.attention import attend, masked

from ..small import noise

B, N, H, T, F = 2, 3, 2, 5, 4


@pytest.mark.parametrize(
    ("shape", "remark"),
    [
        ((1, 1, H, T, T), "one bias for all windows"),
        ((1, N, H, T, T), "a mask for each window"),
        ((B, 1, H, T, T), "visible units: a bias for each sample"),
        ((B, N, H, T, T), "each for itself"),
    ],
)
@pytest.mark.parametrize("hides", [False, True])
def test_attention_agrees_with_torchs_kernel(shape: tuple[int, ...], remark: str, hides: bool) -> None:
    queries, keys, values = (noise(B, N if shape[1] > 1 or shape[0] == 1 else 1, H, T, F, seed=i) for i in range(3))
    inputs = [queries, keys, values, noise(*shape, seed=3)]
    is_visible = torch.ones(T, T, dtype=torch.bool).tril() if hides else torch.ones(T, T, dtype=torch.bool)
    found = []
    for way in (scaled_dot_product_attention, attend):
        q, k, v, bias = (x.clone().requires_grad_() for x in inputs)
        out = way(q, k, v, masked(bias, is_visible))
        found.append((out, *torch.autograd.grad((out * noise(*out.shape, seed=4)).sum(), (q, k, v, bias))))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    if hides:  # the first token sees itself alone: what the others hold is nothing to it
        for way in (scaled_dot_product_attention, attend):
            q, k, v, bias = inputs
            others = torch.arange(T)[:, None] > 0
            out = way(q, torch.where(others, 9 * k, k), torch.where(others, -v, v), masked(bias, is_visible))
            torch.testing.assert_close(out[..., 0, :], found[0][0][..., 0, :])
