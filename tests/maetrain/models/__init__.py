"""Tests of maetrain.models."""
