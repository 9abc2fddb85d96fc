"""The other libraries, each in the form its own makers recommend. An absent one costs one line of the result."""
