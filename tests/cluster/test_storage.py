"""What a node finds wrong with its view of a run's folders, and what the driver makes of the answers."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import storage
from cluster.storage import check_storage, complaint, worker_nodes
from data_shards.errors import InputError

HERE = "a" * 8


def node(name: str, cpus: float = 4.0, is_alive: bool = True) -> dict[str, Any]:
    return {
        "NodeID": name * 8,
        "NodeManagerAddress": f"10.0.0.{ord(name)}",
        "Alive": is_alive,
        "Resources": {"CPU": cpus},
    }


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    probe = tmp_path / "out" / ".probe"
    probe.mkdir(parents=True)
    (probe / "driver").write_text("driver")
    return probe


def test_a_node_that_sees_all_leaves_its_file(probe: Path, tmp_path: Path) -> None:
    assert complaint(str(probe), "n1", {str(tmp_path): "--shards"}) is None
    assert (probe / "n1").is_file()


def test_a_node_where_out_is_not_mounted_says_so(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    said = complaint(str(tmp_path / "out" / ".probe"), "n1", {})
    assert said and f"{tmp_path / 'out'} is not the folder that the driver sees" in said
    assert not list((tmp_path / "out").iterdir())


def test_a_node_that_cannot_write_says_so(probe: Path) -> None:
    (probe / "n1").mkdir()  # as little writable as a folder of others', also for root
    said = complaint(str(probe), "n1", {})
    assert said and f"{probe.parent} cannot be written (Is a directory)" in said


def test_a_node_that_cannot_read_says_which_option(probe: Path, tmp_path: Path) -> None:
    said = complaint(str(probe), "n1", {str(tmp_path): "--shards", str(tmp_path / "scans"): "--data"})
    assert said and f"--data {tmp_path / 'scans'} is not there" in said


@pytest.mark.parametrize("error", [PermissionError("AccessDenied"), OSError(116, "Stale file handle")])
def test_a_place_that_gives_an_error_is_named_and_not_out(
    probe: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(_: Path) -> bool:
        raise error

    monkeypatch.setattr(storage, "_is_read", fail)
    said = complaint(str(probe), "n1", {"/s": "--shards"})
    assert said and said.startswith(f"--shards /s cannot be read ({error.strerror or 'AccessDenied'})")


def test_only_other_living_nodes_with_cores_are_asked() -> None:
    nodes = [node("a"), node("b"), node("c", cpus=0), node("d", is_alive=False), node("e")]
    assert list(worker_nodes(nodes, but=HERE).values()) == ["b" * 8, "e" * 8]


class Nodes:
    """Other nodes, whose answers a test gives; `seen`: who leaves a file where the driver looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.answers: dict[str, str | None] = {}
        self.seen = {name * 8 for name in names}
        self.asked: list[Mapping[str, str]] = []
        monkeypatch.setattr(storage.ray, "nodes", lambda: [node("a"), *map(node, names)])
        monkeypatch.setattr(
            storage.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: HERE), raising=False
        )
        monkeypatch.setattr(storage, "_asked", self._asked)

    def _asked(self, nodes: Mapping[str, str], probe: str, inputs: Mapping[str, str]) -> dict[str, str | None]:
        self.asked.append(inputs)
        for node_id in nodes.values():
            if node_id in self.seen:
                (Path(probe) / node_id).write_text(node_id)
        return {name: self.answers.get(node_id) for name, node_id in nodes.items()}


def test_the_driver_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, "b", "c")
    check_storage(str(tmp_path / "out"), {"/s": "--shards"})
    assert nodes.asked == [{"/s": "--shards"}] and not list((tmp_path / "out").iterdir())


def test_a_driver_that_cannot_write_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Nodes(monkeypatch, "b")
    monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError("AccessDenied")))
    with pytest.raises(InputError, match=r"out cannot be written \(AccessDenied\)"):
        check_storage(str(tmp_path / "out"), {})
    assert not list((tmp_path / "out").iterdir())


def test_one_machine_alone_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch)
    check_storage(str(tmp_path / "out"), {})
    assert not nodes.asked and not (tmp_path / "out").exists()


def test_a_nodes_complaint_is_told_with_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, "b", "c")
    nodes.answers["c" * 8] = "/out cannot be written (Read-only file system); mount it"
    with pytest.raises(InputError, match=r"node 10\.0\.0\.99 \(cccccc\): /out cannot be written"):
        check_storage(str(tmp_path / "out"), {})
    assert not list((tmp_path / "out").iterdir())


def test_a_node_whose_file_the_driver_does_not_see_has_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Nodes(monkeypatch, "b", "c")
    nodes.seen.discard("c" * 8)
    with pytest.raises(InputError, match=r"node 10\.0\.0\.99 .* another folder there.*s3://"):
        check_storage(str(tmp_path / "out"), {})
