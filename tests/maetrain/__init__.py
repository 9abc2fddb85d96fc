"""Tests of maetrain."""
