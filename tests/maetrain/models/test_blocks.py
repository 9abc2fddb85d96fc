"""Window attention against a loop over single tokens, and what may influence what."""

from itertools import product
from math import prod

import pytest
import torch
from torch import Tensor

from maetrain.models import windows
from maetrain.models.attention import SkipAttention, WindowAttention
from maetrain.models.blocks import DropPath, SkipBlock, WindowBlock, draw_drops_K2B
from maetrain.models.config import Triple
from maetrain.models.windows import VisibleUnits, WindowPlan, plan_windows

from ..small import noise

Place = tuple[int, int, int]
WINDOW = (2, 3, 4)
CASES = [
    # map, shifted, remark
    ((4, 3, 8), False, "fits"),
    ((4, 6, 8), True, "shifted"),
    ((3, 4, 5), False, "padded"),
    ((5, 4, 6), True, "padded and shifted"),
    ((1, 2, 9), True, "window cut to the map"),
]


def places_of(size: Triple) -> list[Place]:
    return [(d, h, w) for d, h, w in product(*map(range, size))]


def same_cell(a: Place, b: Place, plan: WindowPlan) -> bool:
    rule = zip(a, b, plan.shift_DHW, plan.window_DHW, strict=True)
    return all((i - shift) // window == (j - shift) // window for i, j, shift, window in rule)


def table_row(query: Place, key: Place, table_DHW: Triple) -> int:
    d, h, w = (q - k + n - 1 for q, k, n in zip(query, key, table_DHW, strict=True))
    return (d * (2 * table_DHW[1] - 1) + h) * (2 * table_DHW[2] - 1) + w


def loop_attention(q_map: Tensor, k_map: Tensor, v_map: Tensor, table: Tensor, heads: int, plan: WindowPlan) -> Tensor:
    """(D, H, W, E) maps in, attended values out: one query, one head at a time, over the tokens it may see."""
    width = q_map.shape[-1] // heads
    out = torch.zeros_like(q_map)
    for query in places_of(plan.size_DHW):
        keys = [key for key in places_of(plan.size_DHW) if same_cell(query, key, plan)]
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            logits = torch.stack(
                [
                    q_map[query][part] @ k_map[key][part] / width**0.5 + table[table_row(query, key, WINDOW), head]
                    for key in keys
                ]
            )
            values = torch.stack([v_map[key][part] for key in keys])
            out[query][part] = logits.softmax(0) @ values
    return out


@torch.no_grad()
@pytest.mark.parametrize(("size", "shifted"), [case[:2] for case in CASES], ids=[case[2] for case in CASES])
def test_window_attention_is_what_a_loop_over_tokens_gives(size: Triple, shifted: bool) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(6, heads=2, window_DHW=WINDOW)
    attention.bias.table.normal_()  # large enough that a wrong row shows
    plan = plan_windows(size, WINDOW, shifted)
    tokens = noise(2, *size, 6)
    got = attention(tokens, plan)
    for b in range(2):
        q, k, v = attention.qkv(tokens[b]).chunk(3, dim=-1)
        want = attention.proj(loop_attention(q, k, v, attention.bias.table, 2, plan))
        torch.testing.assert_close(got[b], want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_skip_attention_is_what_a_loop_over_tokens_gives() -> None:
    torch.manual_seed(0)
    attention = SkipAttention(6, heads=2, window_DHW=WINDOW)
    attention.bias.table.normal_()
    size = (3, 4, 5)
    plan = plan_windows(size, WINDOW, shifted=False)
    up, skip = noise(1, *size, 6), noise(1, *size, 6, seed=1)
    k, v = attention.kv(skip[0]).chunk(2, dim=-1)
    want = attention.proj(loop_attention(up[0], k, v, attention.bias.table, 2, plan))
    torch.testing.assert_close(attention(up, skip, plan)[0], want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "shifted"), [case[:2] for case in CASES], ids=[case[2] for case in CASES])
def test_a_token_is_moved_by_the_tokens_of_its_cell_and_by_no_other(size: Triple, shifted: bool) -> None:
    torch.manual_seed(0)
    block = WindowBlock(4, 2, WINDOW, shifted, mlp_ratio=2.0, drop_path=0.0)
    plan = plan_windows(size, WINDOW, shifted)
    tokens = noise(2, *size, 4).requires_grad_()
    out = block(tokens)
    places = places_of(size)
    for query in places[:: max(len(places) // 12, 1)]:
        # weighted: after a LayerNorm a plain sum has no gradient
        (gradient,) = torch.autograd.grad((out[0][query] * noise(4)).sum(), tokens, retain_graph=True)
        moved = {place for place in places if gradient[0][place].abs().max() > 0}
        assert moved == {place for place in places if same_cell(query, place, plan)}
        assert gradient[1].abs().max() == 0, "samples of a batch don't mix"


def test_the_skip_block_carries_both_maps_and_reads_the_skip_inside_the_window_only() -> None:
    torch.manual_seed(0)
    block = SkipBlock(4, 2, WINDOW, mlp_ratio=2.0)
    size = (3, 4, 5)
    plan = plan_windows(size, WINDOW, shifted=False)
    up, skip = noise(1, *size, 4).requires_grad_(), noise(1, *size, 4, seed=1).requires_grad_()
    query = (2, 1, 3)
    by_up, by_skip = torch.autograd.grad((block(up, skip)[0][query] * noise(4)).sum(), (up, skip))
    places = places_of(size)
    assert {p for p in places if by_up[0][p].abs().max() > 0} == {query}
    assert {p for p in places if by_skip[0][p].abs().max() > 0} == {p for p in places if same_cell(query, p, plan)}
    with torch.no_grad():
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_(), layer.bias.zero_()
        torch.testing.assert_close(block(up, skip), up + skip)


@pytest.mark.parametrize("units", [1, 3])
def test_drop_path_drops_whole_samples_and_keeps_the_mean(units: int) -> None:
    draws_B = draw_drops_K2B(torch.arange(4000), 5)[3, 1]
    out = DropPath(0.25)(torch.ones(4000 * units, 2, 3), draws_B)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    of_samples = out.view(4000, -1)
    assert (of_samples == of_samples[:, :1]).all(), "a sample is dropped as a whole, with all of its units"
    assert torch.equal(of_samples[:, 0] == 0, draws_B < 0.25)
    assert out.mean().item() == pytest.approx(1.0, abs=0.04)
    branch = noise(4000, 2)
    assert torch.equal(DropPath(0.0)(branch, draws_B), branch)
    assert torch.equal(DropPath(0.25)(branch, None), branch)


def test_each_branch_of_each_sample_has_a_draw_of_its_own_that_its_batch_does_not_change() -> None:
    seeds = torch.tensor([5, 2**62, 7, 5])
    draws = draw_drops_K2B(seeds, 3)
    assert draws.shape == (3, 2, 4) and draws.min() >= 0 and draws.max() < 1
    assert torch.equal(draws[..., 0], draws[..., 3]), "of the seed alone"
    assert draws[..., :3].unique().numel() == 18
    for b in range(4):
        assert torch.equal(draw_drops_K2B(seeds[b : b + 1], 3)[..., 0], draws[..., b])


def test_what_is_dropped_does_not_follow_from_what_is_hidden() -> None:
    """Both come from a sample's mask seed: from one and the same generator they would be the same numbers."""
    seeds = torch.arange(2000)
    draws_B = draw_drops_K2B(seeds, 1)[0, 0]
    first = [torch.rand(1, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    assert torch.corrcoef(torch.stack([draws_B, torch.cat(first)]))[0, 1].abs() < 0.1


@torch.no_grad()
@pytest.mark.parametrize(
    ("grid", "cells", "shifted", "remark"),
    [
        ((2, 3, 2), (1, 1, 2), False, "a window holds several units"),
        ((2, 3, 2), (1, 1, 2), True, "shifted across units"),
        ((1, 2, 1), (2, 2, 4), True, "cut to the map, larger than a unit"),
        ((3, 1, 2), (2, 2, 3), True, "windows that end inside units"),
    ],
)
def test_tokens_of_visible_units_attend_inside_the_windows_of_the_whole_map(
    grid: Triple, cells: Triple, shifted: bool, remark: str
) -> None:
    """With all units visible, in any order, the block gives what it gives on the whole map."""
    torch.manual_seed(0)
    block = WindowBlock(6, 2, WINDOW, shifted, mlp_ratio=2.0, drop_path=0.0)
    block.attn.bias.table.normal_()
    size: Triple = tuple(g * c for g, c in zip(grid, cells, strict=True))  # type: ignore[assignment]
    whole = noise(2, *size, 6)
    (a, b, c), (d, h, w) = grid, cells

    def to_cells(map_BDHWE: Tensor) -> Tensor:
        return map_BDHWE.view(2, a, d, b, h, c, w, 6).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(2, a * b * c, d, h, w, 6)

    order = torch.stack([torch.randperm(a * b * c) for _ in range(2)])
    units = torch.stack([to_cells(whole)[i, order[i]] for i in range(2)])
    got = block(units.flatten(0, 1), VisibleUnits(grid, order)).view(units.shape)
    want = torch.stack([to_cells(block(whole))[i, order[i]] for i in range(2)])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("grid", "cells", "visible", "remark"),
    [
        ((2, 3, 2), (1, 1, 2), 5, "a window holds several units"),
        ((1, 2, 1), (2, 2, 4), 1, "cut to the map"),
        ((3, 2, 2), (2, 2, 3), 4, "windows that end inside units, a padded map"),
        ((4, 4, 4), (1, 1, 1), 3, "windows without any visible token"),
    ],
)
def test_visible_tokens_attend_alike_among_all_and_among_windows(
    grid: Triple, cells: Triple, visible: int, remark: str, shifted: bool
) -> None:
    torch.manual_seed(0)
    attn = WindowBlock(6, 2, WINDOW, shifted, mlp_ratio=2.0, drop_path=0.0).attn
    attn.bias.table.data.normal_()
    size: Triple = tuple(g * c for g, c in zip(grid, cells, strict=True))  # type: ignore[assignment]
    plan = plan_windows(size, WINDOW, shifted)
    seen = VisibleUnits(grid, torch.stack([torch.randperm(prod(grid))[:visible] for _ in range(2)]))
    qkv = noise(2, visible * prod(cells), 18).requires_grad_()
    found = []
    for way in (attn.among_all, attn.among_windows):
        out = way(qkv, seen, cells, plan)
        gradients = torch.autograd.grad((out * noise(*out.shape, seed=1)).sum(), (qkv, attn.bias.table))
        found.append((out, *gradients))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    low = attn.among_windows(qkv.bfloat16(), seen, cells, plan)
    for gradient in torch.autograd.grad(low.float().sum(), (qkv, attn.bias.table)):
        assert gradient.isfinite().all(), "in bfloat16 the mask is minus infinity: no row may be empty"


@pytest.mark.parametrize(("side", "way"), [(2, "among_all"), (16, "among_windows")])
def test_the_way_with_fewer_pairs_of_tokens_is_taken(side: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attn = WindowBlock(6, 2, (4, 4, 4), False, mlp_ratio=2.0, drop_path=0.0).attn
    grid, cells = (side,) * 3, (2, 2, 2)  # a quarter of the units visible, windows of 8 units
    seen = VisibleUnits(grid, torch.arange(side**3 // 4)[None])
    taken = []
    for name in ("among_all", "among_windows"):
        monkeypatch.setattr(attn, name, lambda qkv, *_, name=name: taken.append(name) or qkv[..., :6])
    attn.over_units(noise(1, side**3 // 4 * 8, 6), seen, cells, plan_windows((2 * side,) * 3, (4, 4, 4), False))
    assert taken == [way]


@torch.no_grad()
def test_windows_that_fit_into_a_unit_stay_inside_it() -> None:
    block = WindowBlock(6, 2, (2, 2, 2), True, mlp_ratio=2.0, drop_path=0.0)
    units = noise(6, 4, 4, 4, 6)
    seen = VisibleUnits((2, 2, 2), torch.tensor([[0, 3, 5], [1, 2, 7]]))
    torch.testing.assert_close(block(units, seen)[2:3], block(units[2:3]), atol=1e-5, rtol=1e-5)


def test_a_bias_kept_for_inference_is_made_anew_when_the_weights_move() -> None:
    torch.manual_seed(0)
    bias = WindowBlock(4, 2, (2, 2, 2), True, mlp_ratio=2.0, drop_path=0.0).attn.bias
    plan = plan_windows((4, 4, 4), (2, 2, 2), shifted=True)
    with torch.no_grad():
        first = bias(plan)
        assert bias(plan) is first, "kept"
        assert bias(plan_windows((4, 4, 4), (2, 2, 2), shifted=False)).shape != first.shape
        bias.table.add_(1.0)
        assert not torch.equal(bias(plan), first)
        second = bias(plan)
        bias.table.data.add_(1.0)  # behind the version counter, as DeepSpeed and averaged weights do
        assert not torch.equal(bias(plan), second)
    assert bias(plan).requires_grad


def test_what_is_kept_from_inference_does_not_spoil_training() -> None:
    for kept in (windows.visibility_mask_NTT, windows.relative_index_TT, windows._rows_and_windows_Gc):
        kept.cache_clear()
    block, seen = WindowBlock(4, 2, (2, 2, 2), True, 2.0, 0.0), VisibleUnits((3, 2, 2), torch.tensor([[0, 5]]))
    for x, units in ((noise(1, 5, 4, 4, 4), None), (noise(2, 1, 1, 1, 4), seen)):
        with torch.inference_mode():
            block(x, units)
        block(x, units).sum().backward()
