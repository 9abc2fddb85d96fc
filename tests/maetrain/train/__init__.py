"""Tests of maetrain.train."""
