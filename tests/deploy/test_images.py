"""The image is what the manifests expect, and needs no place to write but /tmp, /data and /dev/shm."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.images import DOCKERFILE, PROJECT, Buildah, Image, built
from tests.integration.settings import TINY

deploy = pytest.mark.deploy
BASE = os.environ.get("BASE")  # an image to build on, where a registry can be reached
SMALL = ("synthetic.num_subjects=12", "synthetic.shape_XYZ=[24,28,20]", "synthetic.num_classes=3", "sweep.seeds=[0]")


@pytest.fixture(scope="module")
def buildah() -> Iterator[Buildah]:
    for tool in ("buildah", "ip", *(() if BASE else ("mmdebstrap",))):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}; Debian has it: apt-get install buildah mmdebstrap iproute2")
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces and mounts")
    with tempfile.TemporaryDirectory(prefix="images-") as folder:
        yield (buildah := Buildah(Path(folder)))
        buildah("umount", "--all")


@pytest.fixture(scope="module")
def image(buildah: Buildah) -> Image:
    image = built(buildah, BASE)
    size = subprocess.run(["du", "-sm", image.root], check=True, capture_output=True, text=True).stdout.split()[0]
    print(f"\nCPU image: {size} MiB")
    return image


def test_versions_are_the_projects() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert re.findall(r"^ARG VERSION=(.*)", DOCKERFILE.read_text(), re.MULTILINE) == [project["version"]]
    for file in ("base", "base/ray"):
        kustomization = yaml.safe_load((PROJECT / "deploy" / "k8s" / file / "kustomization.yaml").read_text())
        assert kustomization["images"] == [{"name": "maetrain", "newTag": project["version"]}]


def test_requirements_are_those_of_the_extras_that_are_named() -> None:
    script = DOCKERFILE.parent / "requirements.py"
    printed = subprocess.run([sys.executable, script, "server", "s3"], cwd=PROJECT, check=True, capture_output=True)
    lines = printed.stdout.decode().splitlines()
    assert "torch==2.13.0" in lines and "boto3>=1.40" in lines and "s3fs>=2025.7" in lines
    assert not any(line.startswith(("pytest", "pylibjpeg-libjpeg")) for line in lines)


@deploy
def test_nothing_reaches_the_builder_but_what_the_image_is_made_of(buildah: Buildah, tmp_path: Path) -> None:
    kept = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    kept |= {"deploy/docker/constraints-cuda.txt", "deploy/docker/requirements.py"}
    kept |= {"cluster/cli.py", "maetrain/recipes/demo.yaml", "data_shards/archive/dicom.py"}
    left_out = {".git/config", ".venv/bin/python", ".env", "out/run.json", "data/scan.nii.gz", "scan.dcm", "mlflow.db"}
    left_out |= {
        "cluster/__pycache__/cli.pyc",
        "maetrain/recipes/__pycache__/a.pyc",
        "deploy/k8s/key.pem",
        "tests/a.py",
    }
    for name in kept | left_out:
        (tmp_path / "context" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "context" / name).write_text(name)
    shutil.copy(PROJECT / ".dockerignore", tmp_path / "context")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    root = buildah.root(buildah.build(tmp_path / "context", tmp_path / "Dockerfile"))
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert kept <= there and not there & left_out


@deploy
def test_it_says_what_it_is(image: Image) -> None:
    labels = {key.rpartition(".")[2]: value for key, value in image.config["Labels"].items()}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert (labels["title"], labels["version"], labels["licenses"]) == ("maetrain", project["version"], "Apache-2.0")
    assert image.config["User"] == "1000:1000"
    assert "NVIDIA_VISIBLE_DEVICES" not in str(image.config["Env"])


@deploy
def test_it_runs_as_user_1000_and_can_write_to_its_mounts_alone(image: Image, tmp_path: Path) -> None:
    assert image.run("id", "-un", data=tmp_path).strip() == "maetrain"
    assert image.run("sh", "-c", "echo yes > /data/a && echo yes > ~/a && cat /tmp/a", data=tmp_path) == "yes\n"
    assert (tmp_path / "a").read_text() == "yes\n" and not (image.root / "tmp" / "a").exists()
    assert "Read-only file system" in image.run("touch", "/var/tmp/a", data=tmp_path, check=False)
    theirs = ["find", image.root / "etc", image.root / "opt", image.root / "usr", "!", "-type", "l"]
    theirs += ["(", "-uid", "1000", "-o", "-gid", "1000", "-o", "-perm", "-o+w", ")"]
    assert subprocess.run(theirs, check=True, capture_output=True).stdout == b"", "theirs, were the root not read-only"


@deploy
@pytest.mark.parametrize("shell", ["-c", "-lc"])
def test_commands_of_the_manifests_are_found_by_both_kinds_of_shell(image: Image, tmp_path: Path, shell: str) -> None:
    names = ["maetrain", "mlflow", "ray", "python", "bash", "tar", "wget"]
    where = image.run("bash", shell, f"for name in {' '.join(names)}; do command -v $name; done", data=tmp_path)
    assert [Path(line).name for line in where.splitlines()] == names
    assert where.startswith("/opt/maetrain/bin/maetrain\n/opt/maetrain/bin/mlflow\n/opt/maetrain/bin/ray\n")


@deploy
def test_its_programs_start(image: Image, tmp_path: Path) -> None:
    pins = dict(line.split("==") for line in (PROJECT / "constraints.txt").read_text().splitlines()[1:])
    assert "pretrain" in image.run("maetrain", "--help", data=tmp_path)
    assert pins["mlflow"] in image.run("mlflow", "--version", data=tmp_path)
    assert pins["ray"] in image.run("ray", "--version", data=tmp_path)
    image.run("python", "-c", "import boto3, mlflow.server.auth, psycopg, s3fs", data=tmp_path)


@deploy
def test_every_package_has_the_version_of_the_constraints(image: Image, tmp_path: Path) -> None:
    program = "from importlib.metadata import distributions as d; [print(x.name, x.version) for x in d()]"
    installed = dict(line.split() for line in image.run("python", "-c", program, data=tmp_path).splitlines())
    pins = dict(line.split("==") for line in (PROJECT / "constraints.txt").read_text().splitlines()[1:])
    pins = {re.sub("[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    ours = {"maetrain": installed.pop("maetrain")}
    assert len(installed) > 100 and ours == {"maetrain": image.config["Labels"]["org.opencontainers.image.version"]}
    for name, version in installed.items():
        assert pins.get(re.sub("[-_.]+", "-", name).lower()) == version.removesuffix("+cpu"), name


@deploy
def test_no_compiler_and_no_installer_is_in_it(image: Image, tmp_path: Path) -> None:
    names = "cc gcc g++ c++ clang nvcc ld make pip pip3 git"
    assert image.run("bash", "-c", f"type -P {names}", data=tmp_path, check=False) == ""


@deploy
@pytest.mark.timeout(900)
def test_the_demo_trains_with_every_part_of_deepspeed_that_is_used(image: Image, tmp_path: Path) -> None:
    """There is no compiler: where DeepSpeed wanted one more of its parts it would build it at the start, and fail."""
    settings = (*TINY, *SMALL, "pretrain.zero_stage=3", "pretrain.offload=true")
    said = image.run("maetrain", "demo", "--out", "/data/out", *settings, data=tmp_path)
    assert (tmp_path / "out" / "report" / "index.html").is_file(), said
