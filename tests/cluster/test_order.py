"""A sweep's order comes back from its folder as it was given."""

from pathlib import Path

import pytest

from cluster.order import ORDER, SweepOrder, named_folder, named_folders, named_handovers
from data_shards.errors import InputError
from maetrain.recipes.load import load_recipe


def test_an_order_survives_its_folder(tmp_path: Path) -> None:
    config = load_recipe("small", ("sweep.learning_rates=[1e-3, 3e-3]", "finetune.augment.mirror=[true, false, false]"))
    order = SweepOrder(
        config=config, shards="s3://bucket/shards", data=tmp_path, handovers={"mae": [tmp_path / "a"]}, elsewhere={}
    )
    order.save(tmp_path)
    assert SweepOrder.load(tmp_path) == order


@pytest.fixture
def order(tmp_path: Path) -> SweepOrder:
    return SweepOrder(config=load_recipe("small", ()), shards="shards", data=tmp_path, handovers={}, elsewhere={})


def test_the_store_of_a_sweep_is_remembered_until_another_is_given(
    order: SweepOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert order.tracked_at(None).tracking_uri is None, "sqlite in OUT"
    order.tracked_at("http://mlflow:5000").save(tmp_path)
    kept = SweepOrder.load(tmp_path)
    assert kept.tracked_at(None).tracking_uri == "http://mlflow:5000"
    assert kept.tracked_at("http://other:5000").tracking_uri == "http://other:5000"
    monkeypatch.chdir(tmp_path)
    assert kept.tracked_at("sqlite:///a.db").tracking_uri == f"sqlite:///{tmp_path}/a.db"


def test_a_password_is_not_kept_and_asked_for(order: SweepOrder, tmp_path: Path) -> None:
    secret = order.tracked_at("postgresql://me:secret@db/runs")
    assert secret.tracking_uri == "postgresql://me:secret@db/runs"
    secret.save(tmp_path)
    assert "secret" not in (tmp_path / ORDER).read_text()
    kept = SweepOrder.load(tmp_path)
    with pytest.raises(InputError, match=r"no password: give --tracking-uri postgresql://me:\*\*\*@db/runs again"):
        kept.tracked_at(None)
    assert kept.tracked_at("postgresql://me:secret@db/runs").tracking_uri == secret.tracking_uri


def test_a_folder_without_an_order_or_with_a_garbled_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no sweep to go on with .*{ORDER}"):
        SweepOrder.load(tmp_path)
    (tmp_path / ORDER).write_text('{"config": 3}')
    with pytest.raises(InputError, match="give the whole command again"):
        SweepOrder.load(tmp_path)


def test_a_handover_may_lie_in_a_bucket_or_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(place: Path, into: Path) -> Path:
        fetched.append(str(place))
        (into / "copy").mkdir(parents=True, exist_ok=True)
        return into / "copy"

    monkeypatch.setattr("cluster.order.fetched_handover", fetch)
    (tmp_path / "own").mkdir()
    found = named_handovers([f"{tmp_path}/own", "long=memory://bucket/run=1/handover"], tmp_path / "out")
    assert found == {"mae": [tmp_path / "own"], "long": [tmp_path / "out/handovers/copy"]}
    assert fetched == ["memory://bucket/run=1/handover"]
    assert list(named_handovers(["memory://bucket/handover"], tmp_path / "out")) == ["mae"]


def test_folders_are_named_and_one_may_go_without(tmp_path: Path) -> None:
    for name in ("a", "b=c"):
        (tmp_path / name).mkdir()
    a, b = tmp_path / "a", tmp_path / "b=c"
    found = named_folders("--handover", [f"long={a}", f"other={b}", f"long={b}"], "mae")
    assert found == {"long": [a, b], "other": [b]}
    assert named_folders("--handover", [str(a)], "mae") == {"mae": [a]}
    assert named_folders("--handover", [str(b)], "mae") == {"mae": [b]}, "a = in a folder's name names no arm"
    with pytest.raises(InputError, match="rate=3/gone is not a folder"):
        named_folders("--handover", [f"{tmp_path}/rate=3/gone"], "mae")
    assert named_folder("--elsewhere", [f"there={a}"]) == {"there": a}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["x=a", "x=a"], "x=a: given twice"),
        (["x=a", "x=b"], "two folders for x"),
        (["=a"], "write NAME=FOLDER"),
        (["a"], "write NAME=FOLDER"),
        (["../x=a"], "write NAME=FOLDER"),
        (["a+b (c)=a"], "is no name; use small letters"),
        (["x=gone"], "gone is not a folder"),
    ],
)
def test_names_that_do_not_work_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=message):
        named_folder("--elsewhere", values)
