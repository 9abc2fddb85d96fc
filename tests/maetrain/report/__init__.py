"""Tests of maetrain.report."""
