"""A trainer of nnU-Net's with a schedule as short as a sweep's jobs; nnU-Net loads it, nothing of ours does.

nnU-Net imports every file of this folder (its variable nnUNet_extTrainer) with the interpreter of its own environment.
"""

import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerFewSteps(nnUNetTrainer):
    """nnU-Net's own but for its length: its rate falls by the epoch, so epochs must be short where steps are few."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["FEW_STEPS_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["FEW_STEPS_PER_EPOCH"])
        self.num_val_iterations_per_epoch = 1  # what it measures there decides nothing: the last weights count
