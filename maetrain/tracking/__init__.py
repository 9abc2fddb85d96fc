"""Experiment tracking behind one small interface."""
