"""Imports flow one way; an import hidden in a function counts."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)


def test_the_import_table_holds() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


def test_a_planted_import_is_caught(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "cluster", "maetrain", "data_shards"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "maetrain").unlink()
    copy = ["cp", "-r", str(ROOT / "maetrain"), str(tmp_path)]
    subprocess.run(copy, check=True)
    with (tmp_path / "maetrain" / "masking" / "units.py").open("a") as file:
        file.write("\n\ndef hidden() -> None:\n    import ray  # noqa: F401\n")
    done = lint(tmp_path)
    assert done.returncode != 0 and "Ray only in cluster BROKEN" in done.stdout


def test_a_training_process_needs_neither_ray_nor_mlflow() -> None:
    # None in sys.modules makes an import fail as if the package were not installed
    code = "import sys; sys.modules.update(ray=None, mlflow=None); import maetrain.train.pretrain"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
