"""Tests of maetrain.checkpoint."""
