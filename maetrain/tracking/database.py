"""Whether a database answers, known before MLflow's server is started on it, which tries for minutes."""

from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import SQLAlchemyError

from data_shards.errors import InputError
from maetrain.tracking.uri import without_secrets

CONNECT_S = 5


def check_database(uri: str) -> None:
    """Reads the names of its tables. InputError where it is no sqlite or PostgreSQL, or does not answer in 5 s."""
    kind = uri.partition(":")[0].partition("+")[0]
    if kind not in ("sqlite", "postgresql"):
        raise InputError(
            f"--store {without_secrets(uri)}: runs are kept in sqlite:///FILE or postgresql://USER@HOST/NAME; give one"
        )
    try:
        # of an address that can't be parsed, too, or a driver that is not installed
        engine = create_engine(uri, connect_args={"connect_timeout": CONNECT_S} if kind == "postgresql" else {})
        try:
            inspect(engine).get_table_names()
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError, ValueError) as error:
        why = without_secrets(str(error).strip().splitlines()[0])
        raise InputError(
            f"--store {without_secrets(uri)}: no database to work with ({why}); start it, look at name, user and "
            "password (PGPASSWORD), or leave --store out for sqlite"
        ) from None
