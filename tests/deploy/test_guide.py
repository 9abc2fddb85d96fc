"""What the guide tells people to type and to change is there."""

import re
import shlex

import pytest

from tests.command_line import parsed
from tests.deploy.manifests import GUIDE, K8S, KUSTOMIZATIONS, build, kubectl, name_of
from tests.docs.blocks import blocks

PAGE = GUIDE.read_text()
PATH = r"(?:base|components|jobs|overlays)/"


def test_every_path_that_is_named_exists() -> None:
    named = re.findall(rf"`({PATH}[\w./-]+)`", PAGE)
    overlays = re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE)
    tree = re.findall(rf"^({PATH}\S*)", (K8S / "README.md").read_text(), re.MULTILINE)
    assert len(named) > 10 and len(tree) == 10
    for path in {*named, *tree}:
        assert (K8S / path).exists(), path
    there = {folder.name for folder in (K8S / "overlays").iterdir()}
    assert set(overlays) == there == {path.partition("/")[2] for path in tree if path.startswith("overlays/")}


def test_every_folder_that_is_applied_is_one_and_every_label_chooses_one_job() -> None:
    applied = re.findall(r"kubectl apply -k deploy/k8s/(\S+)(?: -l (\S+)=(\S+))?", PAGE)
    assert {folder for folder, _, _ in applied} <= set(KUSTOMIZATIONS)
    assert [name for folder, _, name in applied if folder == "overlays/local/jobs"] == ["shards", "pretrain", "sweep"]
    for at, (folder, key, value) in enumerate(applied):
        assert bool(key) == folder.endswith("/jobs"), f"all jobs of {folder} at once"
        if key:
            chosen = [m for m in build(folder) if m["metadata"].get("labels", {}).get(key) == value]
            assert [name_of(manifest) for manifest in chosen] == [f"RayJob/{value}"]
            before = {folder for folder, _, _ in applied[:at]}
            assert folder.removesuffix("/jobs") in before, f"{value}: what it needs, its queue too, is not there yet"


def kubectl_lines() -> list[list[str]]:
    """The words of each kubectl command, those in `$(...)` among them, comments and `&` left out."""
    shell = "\n".join(line for block in blocks(PAGE) if block.language == "bash" for line in block.lines)
    found = re.findall(r"(?:^|[({] ?)(kubectl [^\n|;&)]*)", re.sub(r" +# .*", "", shell), re.MULTILINE)
    # what is asked for inside is a command of its own
    return [shlex.split(re.sub(r'"\$\(.*', "x", line)) for line in found]


def test_every_kubectl_command_is_one_that_kubectl_takes() -> None:
    assert len(kubectl_lines()) >= 20
    for words in kubectl_lines():
        assert complaint(words) is None, words


def complaint(words: list[str]) -> str | None:
    """An unknown command or option, which kubectl finds before it shows the help that no cluster is asked for."""
    asked = kubectl(*words[1:], "--help")
    return None if asked.returncode == 0 else asked.stderr.splitlines()[0]


@pytest.mark.parametrize(
    "line",
    [
        "kubectl aply -k deploy/k8s/overlays/local",
        "kubectl wait --fro=create job/shards --timeout=15m",
        "kubectl logs --folow job/shards",
    ],
)
def test_a_misspelt_kubectl_command_is_caught(line: str) -> None:
    assert complaint(line.split()) is not None


def test_a_log_is_asked_for_after_the_wait_for_its_job() -> None:
    """A RayJob's submitter is made when its cluster is up, minutes after `apply`: until then there is no log."""
    lines = [" ".join(words) for words in kubectl_lines()]
    followed = [(at, line.split()[-1]) for at, line in enumerate(lines) if line.startswith("kubectl logs")]
    assert followed
    for at, job in followed:
        name = job.removeprefix("job/")
        assert lines[at - 2].endswith(f"-l maetrain/job={name}")
        assert lines[at - 1].startswith(f"kubectl wait --for=create {job} --timeout=")


def test_the_command_for_the_standing_cluster_is_one_that_the_program_has() -> None:
    (command,) = re.findall(r"-- \\\n  (maetrain .*)", PAGE)
    assert parsed(shlex.split(command))[0] == ["pretrain"]
