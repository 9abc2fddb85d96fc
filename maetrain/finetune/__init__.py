"""One finetune job: one budget, arm and seed."""
