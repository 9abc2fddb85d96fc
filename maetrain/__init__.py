"""One training process group: models, masking, losses, training, finetuning, evaluation, report. Never imports Ray."""
