"""Where and when things run: Ray, and the command line."""
