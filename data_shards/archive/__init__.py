"""Archives as they come from others: folder layouts and NIfTI volumes, checked before anything trusts them."""
