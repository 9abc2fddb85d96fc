"""Committed checkpoints and the handover of the encoder."""
