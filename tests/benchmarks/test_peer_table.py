"""One table of a sweep's arms and others' networks, from their scores alone."""

from pathlib import Path

import pytest

from benchmarks import peer_table
from data_shards.errors import InputError
from maetrain.evaluate.scores import ScoreRow, read_scores, write_scores


def leave(
    folder: Path, arms: dict[str, float], budgets: tuple[int, ...] = (4,), num_persons: int = 6, num_seeds: int = 3
) -> str:
    """Scores of some seeds; Dice of an arm, a little more for each person."""
    folder.mkdir(parents=True)
    rows = [
        ScoreRow(budget, arm, seed, f"case {n}", f"person {n}", "liver", dice + n / 100, 1.0, 0.9)
        for budget in budgets
        for arm, dice in arms.items()
        for seed in range(num_seeds)
        for n in range(num_persons)
    ]
    write_scores(folder / "scores.csv", rows)
    return str(folder)


def test_every_network_is_set_beside_the_arm_at_the_peers_budgets(tmp_path: Path) -> None:
    sweep = leave(tmp_path / "sweep/report", {"scratch": 0.5, "mae": 0.6}, (2, 4, 8))
    peers = [leave(tmp_path / "unet", {"unet": 0.55}), leave(tmp_path / "fast", {"unet": 0.65}, (4, 8))]
    out = tmp_path / "out"
    peer_table.main([str(Path(sweep).parent), peers[0], f"unet, fast={peers[1]}", "--out", str(out)])
    lines = [[*map(str.strip, line.strip("|").split("|"))] for line in (out / "table.md").read_text().splitlines()]
    assert [line[:5] for line in lines[2:]] == [
        ["4", "mae", "0.625", "", ""],
        ["4", "scratch", "0.525", "0.625", "-0.100"],
        ["4", "unet", "0.575", "0.625", "-0.050"],
        ["4", "unet, fast", "0.675", "0.625", "+0.050"],
        ["8", "mae", "0.625", "", ""],
        ["8", "scratch", "0.525", "0.625", "-0.100"],
        ["8", "unet, fast", "0.675", "0.625", "+0.050"],
    ]
    assert {row.budget for row in read_scores(out / "scores.csv")} == {4, 8}


def test_what_makes_no_table_is_refused_and_leaves_none(tmp_path: Path) -> None:
    sweep = leave(tmp_path / "sweep", {"scratch": 0.5, "mae": 0.6})
    unet, other = leave(tmp_path / "unet", {"unet": 0.5}), leave(tmp_path / "other", {"unet": 0.5}, num_persons=5)
    more = leave(tmp_path / "more", {"unet": 0.5}, num_seeds=4)
    both = leave(tmp_path / "both", {"unet": 0.5, "nnunet": 0.6})
    for words, said in (
        ((unet, other), "occurs twice"),
        ((other,), "different test sets are mixed"),
        ((more,), "unet has scores of budget 4, seed 3, and mae has none: nothing to pair"),
        ((f"mine={both}",), "one name for nnunet, unet"),
        ((str(tmp_path / "none"),), "none: no scores.csv there"),
        ((unet, "--arm", "nnssl"), "--arm nnssl: no scores of it at the peers' budgets"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            peer_table.main([sweep, *words, "--out", str(tmp_path / "out")])
        assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()
