"""What commands and ranks import they wait for, at every start. MONAI takes seconds and brings MLflow along."""

import json
import subprocess
import sys

import pytest

HEAVY = ("matplotlib", "mlflow", "monai", "ray", "torch")


def test_a_rank_starts_without_what_only_others_need() -> None:
    looked = """
import sys
import cluster.rank
taken = {"mlflow", "monai", "torch.distributed._tools.mem_tracker"} & set(sys.modules)
import mlflow
print(taken or "nothing", bool(mlflow.__version__))
"""
    done = subprocess.run([sys.executable, "-c", looked], capture_output=True, text=True)
    assert done.stdout.split("\n")[-2] == "nothing True", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        ("cluster.cli", set()),
        ("maetrain.recipes.load", {"torch"}),
        ("cluster.pretrain_verb", {"matplotlib", "mlflow", "ray", "torch"}),
    ],
)
def test_a_command_imports_what_it_needs_and_no_more(module: str, needed: set[str]) -> None:
    program = f"import json, sys, {module}; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) == needed
