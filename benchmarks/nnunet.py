"""nnU-Net v2 with a shortened schedule, on a sweep's own persons and test persons.

    python -m benchmarks.nnunet RECIPE --shards SHARDS --data ARCHIVE --out FOLDER --budget 4 --budget 32 \\
        --nnunet BIN [--epochs 25] [key=value ...]

BIN is the folder of the commands of an environment of its own, made by `pip install nnunetv2`. Everything is
nnU-Net's: planning, preprocessing, network, augmentation, loss, tiled inference with mirroring. Ours are the persons,
the steps and the batch (`finetune.steps` and `finetune.batch`, so that as many crops are seen as by the other networks)
and the scores, made by what `maetrain evaluate --predictions` calls. nnU-Net's rate falls by the epoch, so the steps
are cut into --epochs of them (nnunet_trainer/). The same command goes on where it was stopped, job by job. Leaves
FOLDER/scores.csv in the columns of `maetrain`'s: all jobs that are done at the settings of the last call, whichever
call did them. `benchmarks.peers` needs a folder of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import nibabel as nib
import torch

from benchmarks.ordered import check_peers, ordered, peer_parser, peer_stages, score_jobs
from cluster.grid import Comparison
from data_shards.archive.decathlon import IGNORE
from data_shards.archive.layout import ArchiveCase
from data_shards.archive.volume import read_case_image, read_case_label
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from maetrain.evaluate.metrics import CaseScore
from maetrain.evaluate.predictions import find_predictions, score_predictions
from maetrain.finetune.config import FinetuneJob
from maetrain.recipes.load import load_recipe
from maetrain.report.material import SCORES

NAME = "nnunet"
TRAINER = "nnUNetTrainerFewSteps"
TRAINERS = Path(__file__).parent / "nnunet_trainer"
NUMBER = 1
DATASET = f"Dataset{NUMBER:03d}_Own"
CONFIGURATION = "3d_fullres"
PLANS = "nnUNetPlans"


def lay_out(cases: Sequence[ArchiveCase], index: ShardIndex, images: Path, labels: Path | None) -> None:
    """The cases' files under the names nnU-Net wants, `labels` None = none of theirs.

    Links where each is a 3-D .nii.gz already; otherwise the case is written anew, a file a channel on the image's grid.
    """
    for folder in filter(None, (images, labels)):
        folder.mkdir(parents=True)
    for case in cases:
        sources = list(case.image_paths)
        goals = [images / f"{case.case}_{channel:04d}.nii.gz" for channel in range(len(index.channel_names))]
        if labels is not None:
            assert case.label_path is not None
            sources.append(case.label_path)
            goals.append(labels / f"{case.case}.nii.gz")
        if all(is_plain(path) for path in sources):
            for path, goal in zip(sources, goals, strict=True):
                goal.symlink_to(path.resolve())
            continue
        image = read_case_image(case)
        volumes_XYZ = [*image.data]
        if labels is not None:
            volumes_XYZ.append(read_case_label(case, image, len(index.class_names)).data)
        for data_XYZ, goal in zip(volumes_XYZ, goals, strict=True):
            nib.save(nib.Nifti1Image(data_XYZ, image.affine_4x4), goal)


def is_plain(path: Path) -> bool:
    """Whether nnU-Net reads the file as it is."""
    return path.name.endswith(".nii.gz") and cast(nib.Nifti1Image, nib.load(path)).ndim == 3


def dataset_json(index: ShardIndex, num_training: int) -> dict:
    """What nnU-Net is told of the data: channels, and classes or regions, with the voxels that nobody annotated.

    InputError for a class with a name that means something else to nnU-Net.
    """
    meaning, targets = index.meaning, index.labels.targets
    if reserved := {"background", IGNORE} & {target.name for target in targets}:
        raise InputError(f"class {min(reserved)!r} of {index.root} is no class to nnU-Net: rename it in dataset.json")
    # nnU-Net drops a region that is a list of one value
    labels = {t.name: t.values[0] if len(t.values) == 1 else list(t.values) for t in targets}
    return {
        "channel_names": {str(i): name for i, name in enumerate(index.channel_names)},
        "labels": {"background": 0, **labels} | ({} if meaning.ignore is None else {IGNORE: meaning.ignore}),
        **({"regions_class_order": [region.written for region in meaning.regions]} if meaning.regions else {}),
        "numTraining": num_training,
        "file_ending": ".nii.gz",
    }


def call(command: Path, words: Sequence[str], places: Mapping[str, str], log: Path) -> None:
    """Runs one of nnU-Net's commands; `log` gets what it prints. InputError where it fails or isn't there."""
    with log.open("a") as file:
        try:
            done = subprocess.run([command, *words], env=os.environ | places, stdout=file, stderr=file)
        except OSError as error:
            raise InputError(
                f"{command}: {error.strerror}; give the folder of nnU-Net's commands as --nnunet"
            ) from None
    if done.returncode:
        raise InputError(f"{command.name} {' '.join(words)} ended with status {done.returncode}; why stands in {log}")


def predict(comparison: Comparison, job: FinetuneJob, folder: Path, commands: Path, epochs: int) -> Path:
    """Folder of the test persons' segmentations after planning, training and prediction in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    places = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    places["nnUNet_extTrainer"] = str(TRAINERS)
    steps = comparison.config.finetune.steps // epochs
    fixed = {"nnUNet_n_proc_DA": "2", "nnUNet_compile": "f"}
    fixed |= {"FEW_STEPS_EPOCHS": str(epochs), "FEW_STEPS_PER_EPOCH": str(steps)}

    def run(command: str, *words: str) -> None:
        call(commands / command, words, places | fixed, folder / "log")

    raw = folder / "raw" / DATASET
    built = {volume.case for volume in comparison.index.volumes if volume.has_label and volume.subject in job.subjects}
    own = [case for case in comparison.archive.cases if case.case in built]
    lay_out(own, comparison.index, raw / "imagesTr", raw / "labelsTr")
    lay_out(comparison.test.cases, comparison.index, folder / "test", None)
    (raw / "dataset.json").write_text(json.dumps(dataset_json(comparison.index, len(own))))

    run("nnUNetv2_plan_and_preprocess", "-d", str(NUMBER), "-c", CONFIGURATION, "-np", "1", "-npfp", "1")
    plans_file = folder / "preprocessed" / DATASET / f"{PLANS}.json"
    plans = json.loads(plans_file.read_text())
    plans["configurations"][CONFIGURATION]["batch_size"] = comparison.config.finetune.batch
    plans_file.write_text(json.dumps(plans))
    device = ("-device", "cuda" if torch.cuda.is_available() else "cpu")
    run("nnUNetv2_train", str(NUMBER), CONFIGURATION, "all", "-tr", TRAINER, *device)
    where = ("-i", str(folder / "test"), "-o", str(folder / "predicted"))
    which = ("-d", str(NUMBER), "-c", CONFIGURATION, "-f", "all", "-tr", TRAINER)
    run("nnUNetv2_predict", *where, *which, "-npp", "1", "-nps", "1", *device)
    return folder / "predicted"


def main(words: Sequence[str] | None = None) -> None:
    parser = peer_parser(__doc__)
    parser.add_argument("--nnunet", type=Path, required=True, metavar="BIN", help="folder of nnU-Net's commands")
    parser.add_argument("--epochs", type=int, default=25, help="that finetune.steps are cut into (default %(default)s)")
    arguments = parser.parse_intermixed_args(words)
    config = load_recipe(arguments.recipe, arguments.overrides)
    check_peers(config, arguments.budget)
    if arguments.epochs < 1 or config.finetune.steps % arguments.epochs:
        steps = config.finetune.steps
        raise InputError(
            f"--epochs {arguments.epochs}: finetune.steps = {steps} can't be cut into so many equal epochs"
        )
    comparison = ordered(config, arguments, {NAME: []})
    cases = comparison.test.cases

    def scored(job: FinetuneJob, folder: Path) -> list[CaseScore]:
        predicted = predict(comparison, job, folder, arguments.nnunet, arguments.epochs)
        files = find_predictions(predicted, cases)
        return score_predictions(files, cases, comparison.index.labels, config.evaluate.tolerance_mm)

    stages = peer_stages(comparison, {NAME: {"configuration": CONFIGURATION, "epochs": arguments.epochs}})
    asked = [job for job in stages if job.budget in arguments.budget]
    score_jobs(stages, asked, f"epochs {arguments.epochs}", scored, arguments.out / SCORES)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"nnunet: {error}")
