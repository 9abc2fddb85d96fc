"""A planted key is found; what is explained is let pass, and an explanation without a line is told."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.security import secrets
from tests.security.pins import ROOT
from tests.security.secrets import EXPLAINED, Finding, left

# in two pieces, or this file would be a finding itself
KEY = "AKIA" + "IOSFODNN7EXAMPLE"


def test_what_no_pattern_explains_is_left_and_so_is_a_pattern_without_a_line() -> None:
    known, unknown = Finding("a.py", "key = 1", "Key"), Finding("a.py", "key = 12", "Key")
    assert left([known, unknown], {"a.py: key = .": "why"}) == ([unknown], [])
    assert left([known], {"a.py: key = .": "why", "b.py: .*": "long gone"}) == ([], ["b.py: .*"])


def test_every_explanation_has_its_line_in_the_files_that_git_knows() -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    lines = [
        f"{name}: {line.strip()}"
        for name in files
        if name.endswith((".py", ".yaml", ".json")) and (ROOT / name).is_file()
        for line in (ROOT / name).read_text().splitlines()
    ]
    for pattern, reason in EXPLAINED.items():
        assert reason and any(re.fullmatch(pattern, line) for line in lines), pattern


def test_a_planted_key_is_found_and_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("detect_secrets", reason="detect-secrets comes with the extra `security`: make check-security")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "settings.py").write_text(f'REGION = "eu"\nACCESS = "{KEY}"\n')
    subprocess.run(["git", "add", "settings.py"], cwd=tmp_path, check=True)
    monkeypatch.setattr(secrets, "ROOT", tmp_path)
    monkeypatch.setattr(secrets, "EXPLAINED", {})
    assert secrets.main() == 1
    said = capsys.readouterr().out
    assert said.startswith("settings.py: AWS Access Key in a line of") and KEY not in said
    (tmp_path / "settings.py").write_text('REGION = "eu"\n')
    assert secrets.main() == 0
