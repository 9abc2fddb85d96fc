"""The manifests as `kubectl kustomize` writes them, and the pods in them, wherever they are nested."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).parents[2] / "deploy" / "k8s"
GUIDE = Path(__file__).parents[2] / "docs" / "kubernetes.md"
KUSTOMIZATIONS = tuple(
    sorted(
        str(file.parent.relative_to(K8S))
        for file in K8S.rglob("kustomization.yaml")
        if yaml.safe_load(file.read_text())["kind"] == "Kustomization"
    )
)
PLATFORMS = (
    "base",
    "overlays/gpu",
    "overlays/gpu-kueue",
    "overlays/kueue",
    "overlays/local",
    "overlays/volcano",
)
GPU = ("overlays/gpu", "overlays/gpu-kueue")

Manifest = dict[str, Any]


def kubectl(*words: str) -> subprocess.CompletedProcess[str]:
    """Skips the test that asks where there is none."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, whose kustomize builds the manifests; it is not installed")
    return subprocess.run(["kubectl", *words], capture_output=True, text=True)


@cache
def text_of(folder: str) -> str:
    done = kubectl("kustomize", str(K8S / folder))
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(folder: str) -> list[Manifest]:
    """A new copy each time, so that a test may spoil it."""
    return list(yaml.load_all(text_of(folder), Loader=yaml.CSafeLoader))


def build_with(component: Path, platform: str, folder: Path) -> list[Manifest]:
    """A platform to which somebody has added the component, written into the empty `folder`."""
    resource, added = (os.path.relpath(path, folder.resolve()) for path in (K8S / platform, component))
    (folder / "kustomization.yaml").write_text(f"resources: [{resource}]\ncomponents: [{added}]\n")
    done = kubectl("kustomize", str(folder.resolve()))
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


@dataclass(frozen=True)
class Pod:
    """A pod template, its `spec` the manifest's own; `autoscaler` is the container that KubeRay adds to a head."""

    where: str
    labels: dict[str, str]
    spec: Manifest
    autoscaler: Manifest | None = None

    @property
    def containers(self) -> list[Manifest]:
        added = [self.autoscaler] if self.autoscaler else []
        return [*self.spec.get("initContainers", []), *self.spec["containers"], *added]

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def ports(self) -> set[int]:
        return {port["containerPort"] for container in self.containers for port in container.get("ports", [])}


def pods(manifests: list[Manifest]) -> list[Pod]:
    return [pod for manifest in manifests for pod in _pods(manifest, name_of(manifest))]


def _pods(node: Any, where: str, autoscaler: Manifest | None = None) -> Iterator[Pod]:
    if isinstance(node, list):
        for i, below in enumerate(node):
            yield from _pods(below, f"{where}[{i}]")
    elif isinstance(node, dict):
        if "containers" in node.get("spec", {}):
            if autoscaler is not None:
                autoscaler = {"name": "autoscaler", "image": node["spec"]["containers"][0]["image"], **autoscaler}
            yield Pod(where, node.get("metadata", {}).get("labels", {}), node["spec"], autoscaler)
            return
        for key, below in node.items():
            if key == "headGroupSpec" and node.get("enableInTreeAutoscaling"):
                yield from _pods(below["template"], f"{where}.{key}", node["autoscalerOptions"])
            else:
                yield from _pods(below, f"{where}.{key}")
