"""Files that run code in whoever unpickles them: a trap leaves a file behind when it is sprung."""

import io
import pickle
from pathlib import Path

import numpy as np
import torch


class Trap:
    """As a pickle; it makes the file `path` when somebody loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)

    @property
    def is_sprung(self) -> bool:
        return self.path.exists()


FORMS = ["pickle", "torch.save", "torch.save before 1.6", "numpy objects"]


def trapped(trap: Trap, form: str) -> bytes:
    """A file of the given form with the trap in it."""
    file = io.BytesIO()
    if form == "pickle":
        pickle.dump(trap, file)
    elif form == "numpy objects":
        np.save(file, np.array([trap], dtype=object), allow_pickle=True)
    else:
        torch.save(trap, file, _use_new_zipfile_serialization=form == "torch.save")
    return file.getvalue()
