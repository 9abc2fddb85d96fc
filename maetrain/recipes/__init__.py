"""Run configurations shipped as YAML."""
