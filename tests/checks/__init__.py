"""Tests of what `make check-security` runs, and of the list of licences."""
