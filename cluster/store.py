"""The tracking store of an output folder."""

from pathlib import Path

from data_shards.errors import InputError
from data_shards.formats.files import is_remote
from maetrain.tracking.mlflow_tracker import open_experiment
from maetrain.tracking.work import Tracking

EXPERIMENT = "maetrain"


def own_store(out: Path) -> str:
    """The store inside it."""
    return f"sqlite:///{(out / 'mlflow.db').resolve()}"


def open_store(out: Path, uri: str | None) -> Tracking:
    """The store `uri`, else the folder's own, with no parent run. InputError for one that can't be worked with."""
    if is_remote(out) and uri is None:
        raise InputError(
            f"--out {out}: runs can't be tracked in a bucket; give --tracking-uri, a server or sqlite:///FILE"
        )
    if not is_remote(out):
        out.mkdir(parents=True, exist_ok=True)
    store = uri or own_store(out)
    return Tracking(store, open_experiment(store, EXPERIMENT, None if uri else out / "mlartifacts"), "")
