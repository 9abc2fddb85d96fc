"""nnU-Net v2 with a shortened schedule, on a sweep's own persons and test persons.

    python -m benchmarks.nnunet RECIPE --shards SHARDS --data ARCHIVE --out FOLDER --budget 4 --budget 32 \\
        --nnunet BIN [--epochs 1] [key=value ...]

BIN is the folder of the commands of an environment of its own, made by `pip install nnunetv2`. Everything is
nnU-Net's: planning, preprocessing, network, augmentation, loss, tiled inference with mirroring. Ours are the persons,
the batch (`finetune.batch`, so that as many crops are seen as by the other networks) and the scores, made by what
`maetrain evaluate --predictions` calls. An epoch is 250 steps. The same command goes on where it was stopped, job by
job. Leaves FOLDER/scores.csv in the columns of `maetrain`'s.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.ordered import order_parser, ordered, score_jobs
from cluster.grid import Comparison
from data_shards.archive.layout import ArchiveCase
from maetrain.evaluate.metrics import CaseScore
from maetrain.evaluate.predictions import find_predictions, score_predictions
from maetrain.finetune.config import FinetuneJob
from maetrain.recipes.load import load_recipe

NAME = "nnunet"
EPOCHS = (1, 5, 10, 20, 50, 100)  # nnU-Net has a trainer class for each
NUMBER = 1
DATASET = f"Dataset{NUMBER:03d}_Own"
CONFIGURATION = "3d_fullres"
PLANS = "nnUNetPlans"


def link(cases: Sequence[ArchiveCase], images: Path, labels: Path | None) -> None:
    """The cases' files under the names nnU-Net wants."""
    for folder in filter(None, (images, labels)):
        folder.mkdir(parents=True)
    for case in cases:
        for channel, path in enumerate(case.image_paths):
            (images / f"{case.case}_{channel:04d}.nii.gz").symlink_to(path.resolve())
        if labels is not None:
            assert case.label_path is not None
            (labels / f"{case.case}.nii.gz").symlink_to(case.label_path.resolve())


def predict(comparison: Comparison, job: FinetuneJob, folder: Path, commands: Path, epochs: int) -> Path:
    """Folder of the test persons' segmentations after planning, training and prediction in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    places = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    fixed = {"nnUNet_n_proc_DA": "2", "nnUNet_compile": "f"}

    def call(command: str, *words: str) -> None:
        with (folder / "log").open("a") as log:
            subprocess.run(
                [commands / command, *words], env=os.environ | places | fixed, check=True, stdout=log, stderr=log
            )

    raw = folder / "raw" / DATASET
    own = [case for case in comparison.archive.cases if case.subject in job.subjects and case.label_path is not None]
    link(own, raw / "imagesTr", raw / "labelsTr")
    link(comparison.test.cases, folder / "test", None)
    about = {
        "channel_names": {str(i): name for i, name in enumerate(comparison.index.channel_names)},
        "labels": {name: value for value, name in enumerate(comparison.index.labels.class_names)},
        "numTraining": len(own),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(about))

    call("nnUNetv2_plan_and_preprocess", "-d", str(NUMBER), "-c", CONFIGURATION, "-np", "1", "-npfp", "1")
    plans_file = folder / "preprocessed" / DATASET / f"{PLANS}.json"
    plans = json.loads(plans_file.read_text())
    plans["configurations"][CONFIGURATION]["batch_size"] = comparison.config.finetune.batch
    plans_file.write_text(json.dumps(plans))
    trainer = f"nnUNetTrainer_{epochs}epoch{'s' if epochs > 1 else ''}"
    device = ("-device", "cuda" if torch.cuda.is_available() else "cpu")
    call("nnUNetv2_train", str(NUMBER), CONFIGURATION, "all", "-tr", trainer, *device)
    where = ("-i", str(folder / "test"), "-o", str(folder / "predicted"))
    which = ("-d", str(NUMBER), "-c", CONFIGURATION, "-f", "all", "-tr", trainer)
    call("nnUNetv2_predict", *where, *which, "-npp", "1", "-nps", "1", *device)
    return folder / "predicted"


def main(words: Sequence[str] | None = None) -> None:
    parser = order_parser(__doc__)
    parser.add_argument("--budget", type=int, action="append", required=True, help="one of the sweep's; again for more")
    parser.add_argument("--nnunet", type=Path, required=True, metavar="BIN", help="folder of nnU-Net's commands")
    parser.add_argument("--epochs", type=int, choices=EPOCHS, default=1, help="of 250 steps")
    arguments = parser.parse_intermixed_args(words)
    config = load_recipe(arguments.recipe, arguments.overrides)
    comparison = ordered(config, arguments, {NAME: []})
    cases = comparison.test.cases

    def scored(job: FinetuneJob) -> list[CaseScore]:
        predicted = predict(comparison, job, arguments.out / job.name, arguments.nnunet, arguments.epochs)
        files = find_predictions(predicted, cases)
        return score_predictions(files, cases, comparison.index.labels, config.evaluate.tolerance_mm)

    score_jobs(comparison, arguments.budget, scored)


if __name__ == "__main__":
    main()
