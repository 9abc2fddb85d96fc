"""Runs of elements from any number of ranks become whole tensors again, or an error; never a guess."""

from pathlib import Path

import pytest
import torch

from maetrain.checkpoint.commit import read_committed
from maetrain.checkpoint.fragments import Fragment, assemble, to_named

from .builders import KINDS, SHAPES, full, rank_fragments, write_checkpoint


def assembled(folder: Path, kinds: tuple[str, ...] = KINDS) -> dict[str, dict[str, torch.Tensor]]:
    return assemble(folder, read_committed(folder), kinds)


def test_tensors_cut_in_the_middle_come_back_whole(tmp_path: Path) -> None:
    tensors = assembled(write_checkpoint(tmp_path, 3))
    assert set(tensors) == set(KINDS)
    for kind in KINDS:
        assert set(tensors[kind]) == set(SHAPES)
        assert all(torch.equal(tensors[kind][name], full(kind, name, step=3)) for name in SHAPES)


@pytest.mark.parametrize("cuts", [(), (1,), (3, 4, 11), tuple(range(1, 12))], ids=len)
def test_the_number_of_ranks_does_not_matter(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    a, b = full("weight", "a.weight").flatten(), full("weight", "b.bias")
    edges = list(zip((0, *cuts), (*cuts, 12), strict=True))
    ranks = [[Fragment("weight", "a.weight", start, a[start:stop])] for start, stop in edges]
    ranks[-1].append(Fragment("weight", "b.bias", 0, b))
    tensors = assembled(write_checkpoint(tmp_path, 0, ranks[::-1]), ("weight",))  # in any order of files
    assert torch.equal(tensors["weight"]["a.weight"], full("weight", "a.weight"))
    assert torch.equal(tensors["weight"]["b.bias"], b)


def test_only_the_kinds_asked_for_are_read(tmp_path: Path) -> None:
    assert set(assembled(write_checkpoint(tmp_path, 0), ("weight",))) == {"weight"}


def test_a_fragment_is_a_copy_of_its_own_elements_only() -> None:
    whole = torch.arange(1000.0)
    named = to_named([Fragment("weight", "x", 2, whole[2:5])])
    whole[:] = -1
    assert list(named) == ["weight|x|2"] and named["weight|x|2"].tolist() == [2.0, 3.0, 4.0]
    assert named["weight|x|2"].untyped_storage().nbytes() == 12


def run(start: int, stop: int, kind: str = "weight", name: str = "a.weight") -> Fragment:
    return Fragment(kind, name, start, torch.ones(stop - start))


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        pytest.param([run(0, 7)], "7 of 12", id="the rest is missing"),
        pytest.param([run(0, 7), run(8, 12)], "a.weight", id="one element missing inside"),
        pytest.param([run(0, 6), run(4, 10)], "a.weight", id="as many twice as missing: 12 elements in all"),
        pytest.param([run(0, 12), run(3, 5)], "a.weight", id="some twice"),
        pytest.param([run(0, 7), run(7, 13)], "a.weight", id="beyond the end"),
        pytest.param([], "a.weight", id="the whole parameter missing"),
        pytest.param([run(0, 12), run(0, 2, name="stranger")], "stranger", id="a parameter nobody knows"),
    ],
)
def test_runs_that_do_not_tile_a_tensor_are_refused(tmp_path: Path, runs: list[Fragment], said: str) -> None:
    ranks = [[run(0, 5, name="b.bias")], *([part] for part in runs)]
    folder = write_checkpoint(tmp_path, 0, ranks)
    with pytest.raises(ValueError, match=said):
        assembled(folder, ("weight",))


def test_a_missing_rank_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 0, rank_fragments()[:1])
    with pytest.raises(ValueError, match="elements"):
        assembled(folder)
