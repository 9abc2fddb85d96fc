"""Equal settings have equal fingerprints, and differences are said in words."""

from maetrain.checkpoint.fingerprint import differences, fingerprint


def test_the_order_of_keys_does_not_count_and_every_value_does() -> None:
    settings = {"a": 1, "b": {"c": [1, 2], "d": None}}
    assert fingerprint(settings) == fingerprint({"b": {"d": None, "c": [1, 2]}, "a": 1})
    others = [{**settings, "a": 2}, {"a": 1, "b": {"c": [2, 1], "d": None}}, {"a": 1}, {**settings, "e": None}]
    assert len({fingerprint(s) for s in (settings, *others)}) == 5


def test_differences_name_nested_keys_with_both_values() -> None:
    old = {"same": 1, "pretrain": {"steps": 100, "mae": {"ratio": 0.7}}, "gone": True}
    new = {"same": 1, "pretrain": {"steps": 200, "mae": {"ratio": 0.75}}, "come": "x"}
    assert differences(old, new) == [
        'come: null -> "x"',
        "gone: true -> null",
        "pretrain.mae.ratio: 0.7 -> 0.75",
        "pretrain.steps: 100 -> 200",
    ]
    assert differences(old, old) == []


def test_long_values_are_cut() -> None:
    (line,) = differences({"files": list(range(100))}, {"files": []})
    assert line.endswith("... -> []") and len(line) < 80
