"""The verb `predict`: one scan, or a folder of them, on a GPU where there is one."""

from collections.abc import Sequence
from pathlib import Path

import torch

from cluster.console import say
from data_shards.errors import InputError
from maetrain.evaluate.model_folder import load_model
from maetrain.evaluate.predict import note_in, predict_file
from maetrain.evaluate.predict_folder import Outcome, note_of, predict_folder
from maetrain.evaluate.sliding import Sliding


def run_predict_verb(model: Path, images: Sequence[Path], out: Path, how: Sliding, skip_existing: bool) -> list[str]:
    """Says what becomes of each scan; returns why scans of a folder could not be segmented, one line each."""
    network, contract = load_model(model)
    if missing := [path for path in images if not path.exists()]:
        raise InputError(f"{missing[0]}: no such file or folder; give a scan, or a folder of scans")
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    classes = ", ".join(f"{value} {name}" for value, name in enumerate(contract.class_names))
    folder = next((path for path in images if path.is_dir()), None)
    if folder is None:
        note = note_of(contract, how)
        if not (skip_existing and note_in(out) == note):
            predict_file(network, images, out, contract.preprocess, contract.window_DHW, how, note, contract.meaning)
        say(f"{out}: {classes}")
        return []
    if len(images) > 1 or out.suffix in (".nii", ".gz") or out.is_file():
        raise InputError(f"{folder} is a folder: give it alone, and a folder for its segmentations, not {out.name}")
    outcomes = predict_folder(network, contract, folder, out, how, skip_existing, _tell)
    failed = [outcome.error for outcome in outcomes if outcome.error]
    say(f"{out}: {len(outcomes) - len(failed)} of {len(outcomes)} scans; {classes}")
    return failed


def _tell(outcome: Outcome) -> None:
    what = "not segmented" if outcome.error else "kept" if outcome.was_there else "done"
    say(f"{outcome.wanted.out.name}: {what}")
