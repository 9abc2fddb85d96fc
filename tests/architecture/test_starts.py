"""What a rank imports it waits for, at every start of a group."""

import subprocess
import sys


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
