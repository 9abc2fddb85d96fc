"""The benchmarks run where nothing but torch, MONAI and pydantic is: a borrowed GPU machine without a network."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_THERE = ("ray", "deepspeed", "mlflow", "zarr", "webdataset", "nibabel", "click", "rich")

RUN = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
sys.argv = {arguments}
importlib.import_module({module!r}).main()
"""


@pytest.mark.runs
@pytest.mark.parametrize(
    ("module", "arguments", "rows"),
    [
        (
            "benchmarks.model",
            "--variant tiny --crop 16 --channels 1 --rounds 1 --only dense visible segmentation",
            ("| dense | ", "| visible | ", "| segmentation | ", "- dense / visible, step: "),
        ),
        ("benchmarks.attention", "--help", ("window attention",)),
    ],
)
def test_a_benchmark_needs_no_engine(module: str, arguments: str, rows: tuple[str, ...], tmp_path: Path) -> None:
    written = tmp_path / "result.md"
    line = [module, *arguments.split(), *(["--write", str(written)] if "--help" not in arguments else [])]
    code = RUN.format(absent=NOT_THERE, arguments=line, module=module)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    text = done.stdout.lower()
    assert all(row.lower() in text for row in rows), done.stdout
    assert not written.exists() or written.read_text().strip() in done.stdout
