"""Every console command answers --help with examples, and every README command marked runnable runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli import cli
from docs.reference import called
from tests.docs.blocks import README, ROOT, blocks


def test_the_verbs_of_the_main_job_are_there() -> None:
    verbs = {" ".join(path) for path, _ in called(cli)}
    shards = {"shards build", "shards verify", "shards show"}
    assert verbs >= shards | {"pretrain", "sweep", "evaluate", "predict", "report", "export", "demo", "config show"}


@pytest.mark.parametrize("path", [path for path, _ in called(cli)], ids=" ".join)
def test_every_command_answers_help_with_examples(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.output and f"maetrain {' '.join(path)}" in result.output


def readme_commands() -> list[str]:
    return [line for block in blocks(README.read_text()) if block.mark == "runnable" for line in block.lines]


def test_the_readme_has_runnable_commands() -> None:
    assert len(readme_commands()) >= 3


@pytest.mark.runs
def test_every_runnable_command_of_the_readme_runs(tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent
    for line in readme_commands():
        words = shlex.split(line)
        assert words[0] in ("maetrain", "python"), f"{line!r}: only our own commands are marked runnable"
        words[0] = str(scripts / words[0])
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"


def test_the_readme_file_tree_names_what_is_there() -> None:
    tree = re.search(r"<!-- tree -->\n```\n(.*?)```", README.read_text(), re.DOTALL)
    assert tree, "the README shows a file tree"
    named = []
    folder = ""
    for line in tree.group(1).splitlines():
        entry = line.split("#")[0].rstrip()
        if not entry.strip():
            continue
        if not entry.startswith(" "):
            folder = entry.split()[0] if entry.split()[0].endswith("/") else ""
            named += entry.split()
        else:
            named += [folder + part for part in entry.split()]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"the README names {missing}, which are not there"
    modules = {
        f"{path.relative_to(ROOT).parts[0]}/{path.relative_to(ROOT).parts[1]}"
        for package in ("cluster", "maetrain", "data_shards")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    unnamed = [name for name in sorted(modules) if not any(n.rstrip("/") == name for n in named)]
    assert not unnamed, f"the README's tree does not name {unnamed}"
