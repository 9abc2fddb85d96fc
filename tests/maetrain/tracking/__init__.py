"""Tests of maetrain.tracking."""
