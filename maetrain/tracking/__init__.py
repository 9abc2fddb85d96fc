"""Experiment tracking behind one small interface."""

import os

# MLflow reads them when it is imported, which the files of this package do
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
