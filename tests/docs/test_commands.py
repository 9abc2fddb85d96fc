"""Every command that the pages and the README show is one that the program takes; the story of the guide runs."""

import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest

from cluster.cli import cli
from data_shards.errors import InputError
from docs.reference import with_generated
from tests.command_line import parsed
from tests.docs.blocks import PAGES, ROOT, blocks, commands

# of the checkout, wherever a page names it
FILE = re.compile(r"(?:benchmarks|cluster|data_shards|deploy|docs|maetrain|tests)/[\w./-]+")
STORY = ("quickstart", "data", "pretraining", "sweep")  # in this order one after another


@cache
def shown() -> list[tuple[str, list[str]]]:
    """(page, words) of every command."""
    return [(str(p.relative_to(ROOT)), words) for p in PAGES for words in commands(with_generated(p.read_text()))]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("maetrain config list  # all of them", ["maetrain", "config", "list"]),
        ("maetrain a \\\n    b", ["maetrain", "a", "b"]),
        ("A=1 B=x maetrain a b=1", ["maetrain", "a", "b=1"]),
        ("maetrain a > b", ["maetrain", "a"]),
        ("ray job submit --address http://a -- maetrain a --b", ["maetrain", "a", "--b"]),
        ("sbatch --nodes=2 a/maetrain.sbatch \\\n    maetrain a", ["maetrain", "a"]),
        ("srun --nodes=2 ray symmetric-run -- maetrain a", ["maetrain", "a"]),
        ('python -c "\nimport a\nprint(1)"', ["python", "-c", "\nimport a\nprint(1)"]),
    ],
)
def test_the_words_of_a_command_are_found(line: str, words: list[str]) -> None:
    assert blocks("```\n# a comment\n\nmaetrain a\n```\n")[0].lines == ["maetrain a"]
    assert list(commands(f"text\n\n```bash\n# first\n{line}\n```\n\n```python\nmaetrain = 1\n```\n")) == [words]


def check(words: list[str]) -> None:
    """Reads a `maetrain ...` as the program would, a recipe of the reader's own aside. Raises what it would say."""
    try:
        parsed(["small" if word.endswith(".yaml") else word for word in words])
    except click.exceptions.Exit as shown_only:  # --help, --version
        assert shown_only.exit_code == 0


def test_the_pages_show_commands_of_every_verb() -> None:
    assert len(shown()) >= 60
    told = {" ".join(words[:3]) for _, words in shown()}
    for verb in ("shards build", "shards verify", "shards show", "config show"):
        assert any(line.startswith(f"maetrain {verb}") for line in told), verb
    verbs = {words[1] for _, words in shown() if words[0] == "maetrain"}
    assert verbs >= set(cli.commands)


def test_every_maetrain_command_is_taken_by_the_program() -> None:
    wrong = []
    for page, words in shown():
        if words[0] != "maetrain":
            continue
        try:
            check(words)
        except (click.ClickException, InputError) as error:
            wrong.append(f"{page}: {' '.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "remark"),
    [
        ("maetrain pretrian small --shards s --out o", "misspelt verb"),
        ("maetrain pretrain small --shard s --outs o", "misspelt option"),
        ("maetrain pretrain small --shards s", "an option that is required"),
        ("maetrain pretrain small --shards s --out o pretrain.step=3", "misspelt setting"),
        ("maetrain sweep smal --out o", "unknown recipe"),
        ("maetrain shards build a b shards.format=hdf5", "a value that is not allowed"),
        ("maetrain shards", "a group alone"),
    ],
)
def test_a_wrong_command_is_found(line: str, remark: str) -> None:
    with pytest.raises((click.ClickException, InputError)):
        check(line.split())


def test_every_make_target_and_module_that_is_shown_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page, words in shown():
        if words[0] == "make":
            asked = {word for word in words[1:] if "=" not in word}
            assert asked <= targets, f"{page}: {' '.join(words)}"
        if words[0] in ("python", "torchrun") and "-m" in words:
            module = words[words.index("-m") + 1]
            assert importlib.util.find_spec(module), f"{page}: {' '.join(words)}"
    for file in PAGES:
        in_prose = set(re.findall(r"`make ([a-z-]+)", file.read_text()))
        assert in_prose <= targets, f"{file.relative_to(ROOT)}: {in_prose - targets}"


def named(text: str) -> set[str]:
    """Files of the checkout that a page names: between backticks, or as a word of a block."""
    code = {word for inside in re.findall(r"`([^`\n]+)`", text) for word in inside.split()}
    in_blocks = {word for block in blocks(text) for word in block.text.split()}
    return {word for word in code | in_blocks if FILE.fullmatch(word)}


def missing(page: Path, text: str) -> set[str]:
    """What the page names or links to, or lists as lying beside it, and is not there."""
    links = set(re.findall(r"\]\((?!\w+:)([^)#\s]+)", text))
    lists = [block.text for block in blocks(text) if block.language == "text" and ROOT / "deploy" in page.parents]
    beside = {line.split()[0] for listed in lists for line in listed.splitlines()}
    gone = {word for word in named(text) if not (ROOT / word).exists()}
    return gone | {word for word in links | beside if not (page.parent / word).exists()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    assert missing(page, page.read_text()) == set()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("see `deploy/observability/rule.yml`", "deploy/observability/rule.yml"),
        ("by `bash benchmarks/gpus.sh`", "benchmarks/gpus.sh"),
        ("```bash\nprometheus --config.file deploy/prometheus.yml\n```\n", "deploy/prometheus.yml"),
        ("[k8s](../k8s/READ.md#x)", "../k8s/READ.md"),
        ("```text\nrules.yml  the alerts\nrulez.yml  others\n```\n", "rulez.yml"),
    ],
)
def test_a_file_that_is_not_there_is_found(text: str, word: str) -> None:
    assert missing(ROOT / "deploy" / "observability" / "README.md", text) == {word}


def story() -> list[str]:
    pages = [(ROOT / "docs" / f"{name}.md").read_text() for name in STORY]
    return [block.text for page in pages for block in blocks(page) if block.mark == "story"]


def test_the_story_is_told_on_every_of_its_pages() -> None:
    marked = {page.stem for page in PAGES if any(block.mark == "story" for block in blocks(page.read_text()))}
    assert marked == set(STORY)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_story_of_the_guide_runs(tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent
    env = os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-e", "-u", "-c", "".join(story())], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    for made in ("mine.yaml", "sheet.png", "encoder/contract.json", "segmentation.nii.gz", "scores.csv"):
        assert (tmp_path / made).stat().st_size, made
    page = (tmp_path / "sweep/report/index.html").read_text()
    assert "random-mae" in page and "Label efficiency" in page
    assert "random-mae" in (tmp_path / "report-again/summary.json").read_text()
