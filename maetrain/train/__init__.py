"""The pretraining loop and its engine."""
