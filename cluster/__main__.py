"""`python -m cluster` is `maetrain`, for a machine that has the source and no console script."""

from cluster.cli import main

main()
