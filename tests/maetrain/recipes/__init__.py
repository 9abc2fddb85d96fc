"""Tests of maetrain.recipes."""
