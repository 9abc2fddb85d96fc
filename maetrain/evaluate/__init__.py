"""Scores of a finished model: per case and class, in the image's own grid and millimetres."""
