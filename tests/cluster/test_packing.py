"""What goes with a job: sources, no data, no keys, and never more than the limit."""

import subprocess
from pathlib import Path

import pytest

from cluster.packing import packed, packed_recipe, source_files
from data_shards.errors import InputError

KEPT = ("recipes/mine.yaml", "train.py", "pkg/module.py", "pkg/data.json", "tests/test_secrets.py", "monkey.txt")
LEFT = (
    ".git/HEAD",
    ".venv/lib/module.py",
    ".env",
    "pkg/.hidden/a.py",
    "pkg/__pycache__/module.pyc",
    "server.key",
    "scans/case.nii.gz",
    "scan.dcm",
    "somewhere/dataset.json",
    "somewhere/notes.txt",
    "somewhere/deeper/notes.txt",
    "made/index.json",
    "made/zarr.json",
    "a.zarr/zarr.json",
    "result/run.json",
    "result/log.txt",
    "data/table.csv",
    "model.safetensors",
    "salt",
    "admin-password",
    "api-key.txt",
    "credentials.json",
    "deploy/secrets.yaml",
    "cluster.env",
    "id_ed25519",
    "kubeconfig",
    "mlflow-server/mlflow.log",
    "tracking/basic_auth.ini",
    "tracking/artifacts/1/report.html",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (*KEPT, *LEFT):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"this is {name}")
    (tmp_path / "elsewhere.txt").write_text("not of this tree")
    (tmp_path / "tree" / "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    return tmp_path / "tree"


def test_sources_are_packed_and_nothing_else(tree: Path) -> None:
    with packed(tree) as folder:
        found = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
    assert found == {name: f"this is {name}" for name in KEPT}
    assert not folder.exists()


def test_what_git_ignores_stays_here(tree: Path) -> None:
    subprocess.run(["rm", "-r", tree / ".git"], check=True)
    subprocess.run(["git", "init", "-q", tree], check=True)
    (tree / ".gitignore").write_text("pkg/module.py\n")
    assert {str(path) for path in source_files(tree)} == {*KEPT} - {"pkg/module.py"}


def test_a_folder_that_git_ignores_is_not_sent(tree: Path) -> None:
    subprocess.run(["git", "init", "-q", tree.parent], check=True)
    (tree.parent / ".gitignore").write_text(f"{tree.name}/\n")
    with pytest.raises(InputError, match="nothing to send in it: hidden, ignored by git, or data"), packed(tree):
        pass


def test_a_tree_above_the_limit_is_told_before_it_is_copied(tree: Path) -> None:
    (tree / "pkg" / "large.bin").write_bytes(bytes(3 * 2**20))
    with (
        pytest.raises(InputError, match=r"3 MiB in 7 files, above 2 MiB; the largest is pkg/large\.bin \(3 MiB\)"),
        packed(tree, limit_mib=2),
    ):
        pass
    with packed(tree, limit_mib=4) as folder:
        assert (folder / "pkg" / "large.bin").stat().st_size == 3 * 2**20


def test_a_recipe_goes_alone(tree: Path) -> None:
    with packed_recipe(tree / "recipes" / "mine.yaml") as folder:
        assert [path.name for path in folder.rglob("*")] == ["mine.yaml"]
