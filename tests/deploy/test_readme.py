"""What the README tells people to type and to change is there."""

import re
import shlex

from tests.command_line import parsed
from tests.deploy.manifests import K8S, KUSTOMIZATIONS, build, name_of

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


def test_the_command_for_the_standing_cluster_is_one_that_the_program_has() -> None:
    (command,) = re.findall(r"-- \\\n  (maetrain .*)", README)
    assert parsed(shlex.split(command))[0] == ["pretrain"]
