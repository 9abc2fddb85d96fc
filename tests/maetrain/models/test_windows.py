"""Windows of a map of any size: nothing is lost, and who sees whom is what a loop over all pairs says.

N windows of a map, T tokens of a window
"""

from itertools import product

import numpy as np
import pytest
import torch

from maetrain.models.config import Triple
from maetrain.models.windows import (
    WindowPlan,
    from_heads,
    plan_windows,
    relative_index_TT,
    to_heads,
    visibility_mask_NTT,
)

CPU = torch.device("cpu")
CASES = [
    # map, window, shifted, remark
    ((4, 4, 4), (2, 2, 2), False, "fits"),
    ((4, 4, 4), (2, 2, 2), True, "fits, shifted"),
    ((4, 6, 8), (4, 2, 4), True, "first axis covered whole, the others shifted"),
    ((5, 3, 7), (4, 4, 4), False, "padded"),
    ((5, 3, 7), (4, 4, 4), True, "padded and shifted"),
    ((5, 7, 6), (3, 3, 3), True, "odd window: shift 1"),
    ((1, 1, 9), (4, 4, 4), True, "a line"),
    ((2, 3, 2), (4, 4, 4), True, "smaller than its window everywhere"),
    ((7, 2, 3), (3, 1, 2), True, "window of one: nothing to shift"),
]


def cases() -> list:
    return [pytest.param(size, plan_windows(size, window, shifted), id=what) for size, window, shifted, what in CASES]


def cell_of(place: np.ndarray, plan: WindowPlan) -> np.ndarray:
    """(T, 3) places of the map -> the window of the shifted tiling, which has cut cells at the border, no wrap."""
    return np.floor_divide(place - np.array(plan.shift_DHW), np.array(plan.window_DHW))


def coded_map(size: Triple) -> torch.Tensor:
    """(1, D, H, W, 1), token i holds i + 1; the zeros that padding adds are nobody."""
    return torch.arange(1, int(np.prod(size)) + 1).view(1, *size, 1)


@pytest.mark.parametrize(("size", "plan"), cases())
def test_every_token_comes_back_to_its_place(size: Triple, plan: WindowPlan) -> None:
    tokens = torch.arange(2 * 3 * int(np.prod(size))).view(2, *size, 3)
    (windows,) = to_heads(tokens, plan, heads=1)
    assert windows.shape[2:] == (1, int(np.prod(plan.window_DHW)), 3)
    assert torch.equal(from_heads(windows, plan), tokens)


@pytest.mark.parametrize(("size", "plan"), cases())
def test_parts_and_heads_are_cut_where_a_linear_layer_puts_them(size: Triple, plan: WindowPlan) -> None:
    """q, k and v lie one after another in the last dimension, inside each the heads."""
    tokens = torch.arange(2 * 12 * int(np.prod(size))).view(2, *size, 12)
    parts = to_heads(tokens, plan, heads=2, parts=3)
    assert len(parts) == 3
    for part, whole in zip(parts, tokens.chunk(3, dim=-1), strict=True):
        assert torch.equal(from_heads(part, plan), whole)
        for head in range(2):
            (alone,) = to_heads(whole[..., 2 * head : 2 * head + 2], plan, heads=1)
            assert torch.equal(part[:, :, head], alone[:, :, 0])


@pytest.mark.parametrize(("size", "plan"), cases())
def test_two_tokens_see_each_other_when_both_are_real_and_in_one_cell_of_the_shifted_tiling(
    size: Triple, plan: WindowPlan
) -> None:
    who_NT = to_heads(coded_map(size), plan, heads=1)[0][0, :, 0, :, 0].numpy()
    visible_NTT = visibility_mask_NTT(plan, CPU).numpy()
    seen = {
        (int(who_NT[n, t]), int(who_NT[n, u])) for n, t, u in zip(*np.nonzero(visible_NTT), strict=True) if who_NT[n, t]
    }
    places = np.array(list(product(*map(range, size))))
    cells = cell_of(places, plan)
    same = (cells[:, None] == cells[None]).all(-1)
    assert seen == {(int(i) + 1, int(j) + 1) for i, j in zip(*np.nonzero(same), strict=True)}


@pytest.mark.parametrize(("size", "plan"), cases())
def test_no_row_of_the_softmax_is_empty_and_padding_sees_only_itself(size: Triple, plan: WindowPlan) -> None:
    who_NT = to_heads(coded_map(size), plan, heads=1)[0][0, :, 0, :, 0]
    visible_NTT = visibility_mask_NTT(plan, CPU)
    eye_TT = torch.eye(who_NT.shape[1], dtype=torch.bool)
    assert visible_NTT.any(-1).all()
    for n, t in torch.nonzero(who_NT == 0).tolist():
        assert not (visible_NTT[n, :, t] & ~eye_TT[:, t]).any(), "nobody sees a padded token"


def test_the_mask_is_skipped_exactly_where_it_would_hide_nothing() -> None:
    for _, plan in (case.values for case in cases()):
        if not plan.needs_mask:
            assert visibility_mask_NTT(plan, CPU).all()


def test_an_axis_is_shifted_by_half_a_window_unless_the_window_covers_it() -> None:
    assert plan_windows((8, 4, 3), (4, 4, 4), shifted=True)[:4] == ((8, 4, 3), (4, 4, 3), (2, 0, 0), (8, 4, 3))
    assert plan_windows((8, 4, 3), (4, 4, 4), shifted=False).shift_DHW == (0, 0, 0)


@pytest.mark.parametrize(
    ("window", "table"),
    [((2, 3, 4), (2, 3, 4)), ((3, 3, 3), (3, 3, 3)), ((2, 1, 3), (4, 3, 3)), ((1, 1, 1), (2, 2, 2))],
)
def test_every_offset_has_one_row_and_every_row_one_offset(window: Triple, table: Triple) -> None:
    index_TT = relative_index_TT(window, table, CPU)
    places = list(product(*map(range, window)))
    row_of: dict[tuple[int, ...], int] = {}
    for t, u in product(range(len(places)), repeat=2):
        offset = tuple(a - b for a, b in zip(places[t], places[u], strict=True))
        assert row_of.setdefault(offset, int(index_TT[t, u])) == int(index_TT[t, u]), f"{offset} has two rows"
    assert len(set(row_of.values())) == len(row_of) == np.prod([2 * w - 1 for w in window])
    assert min(row_of.values()) >= 0 and max(row_of.values()) < np.prod([2 * w - 1 for w in table])


def test_a_window_cut_small_uses_the_rows_its_offsets_have_in_the_full_window() -> None:
    full, small = (3, 4, 5), (2, 4, 1)
    full_places, small_places = (list(product(*map(range, w))) for w in (full, small))
    index_full, index_small = relative_index_TT(full, full, CPU), relative_index_TT(small, full, CPU)
    for t, u in product(range(len(small_places)), repeat=2):
        v, w = full_places.index(small_places[t]), full_places.index(small_places[u])
        assert index_small[t, u] == index_full[v, w]


@pytest.mark.parametrize(
    ("published", "size", "window", "want_window", "want_shift", "remark"),
    [
        ("cubic", (8, 8, 8), (4, 4, 4), (4, 4, 4), (2, 2, 2), "fits"),
        ("cubic", (4, 8, 8), (4, 4, 4), (4, 4, 4), (0, 0, 0), "one axis covered: nothing shifts on the others either"),
        ("cubic", (2, 8, 4), (4, 4, 4), (2, 2, 2), (0, 0, 0), "the smallest side is the window everywhere"),
        ("acdc", (7, 10, 10), (7, 10, 10), (7, 10, 10), (0, 0, 0), "the map itself"),
        ("acdc", (14, 40, 40), (3, 5, 5), (3, 5, 5), (1, 2, 2), "shifted"),
        ("acdc", (3, 10, 10), (3, 5, 5), (3, 5, 5), (1, 2, 2), "a covered axis shifts"),
        ("acdc", (4, 10, 10), (1, 5, 5), (1, 5, 5), (0, 0, 0), "a window of one: no axis shifts"),
    ],
)
def test_published_windows(
    published: str, size: Triple, window: Triple, want_window: Triple, want_shift: Triple, remark: str
) -> None:
    plan = plan_windows(size, window, shifted=True, published=published)  # type: ignore[arg-type]
    assert (plan.window_DHW, plan.shift_DHW) == (want_window, want_shift), remark


def test_published_offsets_share_rows_as_the_published_code_has_it() -> None:
    index_TT = relative_index_TT((4, 4, 4), (4, 4, 4), CPU, published=True)
    assert index_TT.unique().numel() == 115, "of 343"
    assert index_TT[0, 63] == 0 and index_TT[63, 0] == 6 * 11 + 6 * 7 + 6


@pytest.mark.parametrize(("size", "plan"), cases())
def test_published_masks_hide_the_wrap_and_not_the_padding(size: Triple, plan: WindowPlan) -> None:
    cubic, acdc = plan._replace(sees_padding=True), plan._replace(sees_padding=True, sees_wrap=True)
    assert visibility_mask_NTT(acdc, CPU).all() and not acdc.needs_mask
    ours, theirs = visibility_mask_NTT(plan, CPU), visibility_mask_NTT(cubic, CPU)
    real_NT = to_heads(coded_map(size), plan, heads=1)[0][0, :, 0, :, 0] > 0
    both_NTT = real_NT[:, :, None] & real_NT[:, None, :]
    assert torch.equal(ours & both_NTT, theirs & both_NTT), "between real tokens they agree"
