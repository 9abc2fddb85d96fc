"""What `make check-security` runs beside bandit, and the list of licences."""
