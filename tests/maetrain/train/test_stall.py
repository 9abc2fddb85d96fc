"""A process without progress ends by itself and leaves its stacks, also when it holds the global lock."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from maetrain.train.stall import stall_guard, tell_stalls

HANGS = {
    "sleeps": "time.sleep(60)",
    "holds the lock": "import re; re.match('(a+)+$', 'a' * 40 + 'b')",  # backtracks for hours in C
}


@pytest.mark.runs
@pytest.mark.parametrize("hang", HANGS.values(), ids=HANGS.keys())
def test_a_hanging_process_ends_and_leaves_its_stacks(tmp_path: Path, hang: str) -> None:
    program = f"""
import time
from pathlib import Path
from maetrain.train.stall import stall_guard
def hangs_here():
    {hang}
with stall_guard(1.0, Path({str(tmp_path)!r}), "rank-00003-abc") as alive:
    for _ in range(15):
        time.sleep(0.1)
        alive()
    print("alive", flush=True)
    hangs_here()
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout.split() == ["alive"]
    assert time.monotonic() - started < 30
    heard: list[str] = []
    tell_stalls(tmp_path, heard.append)
    assert len(heard) == 1 and "rank-00003-abc.stacks" in heard[0]
    assert "hangs_here" in (tmp_path / "rank-00003-abc.stacks").read_text()
    tell_stalls(tmp_path, heard.append)
    assert len(heard) == 1, "it is told once"


def test_a_run_that_ends_in_time_leaves_nothing(tmp_path: Path) -> None:
    with stall_guard(0.5, tmp_path, "rank"):
        pass
    with pytest.raises(KeyError), stall_guard(0.5, tmp_path, "rank"):
        raise KeyError
    time.sleep(0.7)
    assert list(tmp_path.iterdir()) == []
    with stall_guard(0, tmp_path / "off", "rank") as alive:
        alive()
    assert not (tmp_path / "off").exists()
