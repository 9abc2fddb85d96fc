"""A result says where it comes from, and nothing about the people or folders of the machine."""

import getpass
import re
import subprocess
from pathlib import Path

import pytest

from cluster import provenance as module
from cluster.provenance import commit, provenance


def test_it_names_commit_hardware_and_versions() -> None:
    facts = provenance()
    assert list(facts) == ["commit", "hardware", "versions"]
    assert re.search(r"\d+ cores of ", facts["hardware"]) and "torch 2." in facts["versions"]
    text = " ".join(facts.values())
    assert str(Path.home()) + "/" not in text and f"/{getpass.getuser()}" not in text


def test_the_commit_is_the_checkouts_own_or_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert re.fullmatch(r"[0-9a-f]{12}(\+changes)?|unknown", commit())
    # installed inside somebody else's checkout
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "site-packages" / "cluster").mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site-packages" / "cluster" / "provenance.py"))
    assert commit.__wrapped__() == "unknown"
    # no git at all
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert commit.__wrapped__() == "unknown"
