"""Tests of maetrain.masking."""
