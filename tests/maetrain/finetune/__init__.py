"""Tests of maetrain.finetune."""
