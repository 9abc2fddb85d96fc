"""The benchmarks run where our engines and data libraries are not: a borrowed GPU machine without a network."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

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
    if "--help" not in arguments:
        assert "| visible | " in written.read_text() and written.read_text().strip() in done.stdout


@pytest.mark.runs
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--crop 64 64", "--crop takes one side, or D H W"),
        ("--rounds 0", "whole numbers from 1"),
        ("--channels 0", "whole numbers from 1"),
        ("--write /proc", "/proc takes no result"),
        ("--fill-memory 0.5", "--device cuda"),
        ("--variant tiny --crop 20 --channels 1 --rounds 1 --only dense", "dense does not run so: crop (20, 20, 20)"),
    ],
)
def test_what_cannot_be_measured_is_said_and_fails(arguments: str, said: str) -> None:
    line = [sys.executable, "-m", "benchmarks.model", *arguments.split()]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0 and said in done.stderr + done.stdout and "Traceback" not in done.stderr


def gpu_parts() -> list[tuple[str, ...]]:
    """(module, arguments ...) of every part of benchmarks/gpu.sh."""
    text = (ROOT / "benchmarks" / "gpu.sh").read_text().replace("\\\n", " ")
    return [tuple(shlex.split(line)[3:]) for line in re.findall(r"^part .*", text, re.MULTILINE)]


@pytest.mark.parametrize("part", gpu_parts(), ids=" ".join)
def test_the_gpu_script_asks_for_what_there_is(
    part: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [*part, "--device", "cuda"])
    with pytest.raises(SystemExit):
        import_module(part[0]).main()
    assert "--device cuda: torch sees no GPU here" in capsys.readouterr().err, "nothing else is wrong with it"


def test_the_gpu_script_has_the_rows_that_count() -> None:
    text = "\n".join(" ".join(part) for part in gpu_parts())
    for wanted in ("dense visible", "swinunetr", "--fill-memory", "--compile", "benchmarks.attention"):
        assert wanted in text
