"""The traps of the other tests do spring: a test that finds one unsprung says something."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from .trap import FORMS, Trap, trapped

OPENERS = {
    "pickle": pickle.load,
    "numpy objects": lambda file: np.load(file, allow_pickle=True),
    "torch.save": lambda file: torch.load(file, weights_only=False),
    "torch.save before 1.6": lambda file: torch.load(file, weights_only=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_trap_springs_when_it_is_opened_the_careless_way(tmp_path: Path, form: str) -> None:
    trap = Trap(tmp_path / "sprung")
    content = trapped(trap, form)
    assert not trap.is_sprung
    OPENERS[form](io.BytesIO(content))
    assert trap.is_sprung
