"""What the README tells people to type and to change is there."""

import re
import shlex
import subprocess

import pytest

from tests.command_line import parsed
from tests.deploy.manifests import K8S, KUSTOMIZATIONS, build, name_of
from tests.docs.blocks import blocks

README = (K8S / "README.md").read_text()


def test_every_path_that_is_named_exists() -> None:
    named = re.findall(r"`(?:\.\./)*((?:base|components|jobs|overlays)/[\w./-]*)`", README)
    tree = re.findall(r"^((?:base|components|jobs|overlays)/\S*)", README, re.MULTILINE)
    assert len(named) > 10 and len(tree) == 9
    for path in {*named, *tree}:
        assert (K8S / path).exists(), path


def test_every_folder_that_is_applied_is_one_and_every_label_chooses_one_job() -> None:
    applied = re.findall(r"kubectl apply -k deploy/k8s/(\S+)(?: -l (\S+)=(\S+))?", README)
    assert {folder for folder, _, _ in applied} <= set(KUSTOMIZATIONS)
    jobs = [name for _, _, name in applied if name]
    assert jobs == ["shards", "pretrain", "sweep"]
    for folder, key, value in applied:
        if key:
            chosen = [m for m in build(folder) if m["metadata"].get("labels", {}).get(key) == value]
            assert [name_of(manifest) for manifest in chosen] == [f"RayJob/{value}"]


def kubectl_lines() -> list[list[str]]:
    """The words of each kubectl command, those in `$(...)` among them, comments and `&` left out."""
    shell = "\n".join(line for block in blocks(README) if block.language == "sh" for line in block.lines)
    found = re.findall(r"(?:^|[({] ?)(kubectl [^\n|;&)]*)", re.sub(r" +# .*", "", shell), re.MULTILINE)
    # what is asked for inside is a command of its own
    return [shlex.split(re.sub(r'"\$\(.*', "x", line)) for line in found]


def test_every_kubectl_command_is_one_that_kubectl_takes(kubectl: None) -> None:
    assert len(kubectl_lines()) >= 20
    for words in kubectl_lines():
        assert complaint(words) is None, words


def complaint(words: list[str]) -> str | None:
    """An unknown command or option, which kubectl finds before it shows the help that no cluster is asked for."""
    asked = subprocess.run([*words, "--help"], capture_output=True, text=True)
    return None if asked.returncode == 0 else asked.stderr.splitlines()[0]


@pytest.mark.parametrize(
    "line",
    [
        "kubectl aply -k deploy/k8s/overlays/local",
        "kubectl wait --fro=create job/shards --timeout=15m",
        "kubectl logs --folow job/shards",
    ],
)
def test_a_misspelt_kubectl_command_is_caught(line: str, kubectl: None) -> None:
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
    (command,) = re.findall(r"-- \\\n  (maetrain .*)", README)
    assert parsed(shlex.split(command))[0] == ["pretrain"]
