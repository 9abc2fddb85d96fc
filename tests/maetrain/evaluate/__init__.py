"""Tests of maetrain.evaluate."""
