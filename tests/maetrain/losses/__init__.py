"""Tests of maetrain.losses."""
