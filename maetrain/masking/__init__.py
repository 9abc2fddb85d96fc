"""Which parts of a crop the encoder does not see."""
