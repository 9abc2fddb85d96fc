"""How long a tracking store is waited for, in one place and alike for sqlite, PostgreSQL and a server.

Sqlite has one writer at a time and PostgreSQL a limit of connections, so with many processes a call fails now and then
with "database is locked" or "too many clients", or because another was faster; a server may be down for a minute. Such
calls are made again, after pauses drawn at random, lest all come back together. MLflow's own retries are off: they take
minutes, serve HTTP alone, and repeat a `create_run` whose answer was lost, which makes two runs. The defaults changed
here are those of this process; a user's own MLFLOW_... variables stand above them, and none is set for child processes.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from mlflow import environment_variables as settings
from mlflow.exceptions import MlflowException
from requests import HTTPError
from sqlalchemy.exc import OperationalError

# it writes the traceback of each error that it raises besides, a hundred times while a database is busy
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

PATIENCE_S = 240.0

settings.MLFLOW_HTTP_REQUEST_MAX_RETRIES.default = 0
settings.MLFLOW_HTTP_REQUEST_TIMEOUT.default = 20  # s; MLflow's 120 is long for a thread that shall end with the sweep
if not (settings.MLFLOW_SQLALCHEMYSTORE_POOL_SIZE.get() or settings.MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW.get()):
    # one call takes up to three connections, and a pool keeps them: 40 quiet processes would use up PostgreSQL's 100
    settings.MLFLOW_SQLALCHEMYSTORE_POOLCLASS.default = "NullPool"

# how sqlite, PostgreSQL and MySQL say that another process has just made the same row, which MLflow looks up before it
# makes it: two jobs that are the first to log a dataset. The next call finds it.
_MADE_BY_ANOTHER = ("UNIQUE constraint failed", "UniqueViolation", "Duplicate entry")

P = ParamSpec("P")
T = TypeVar("T")


def is_passing(error: Exception) -> bool:
    """Whether the same call may succeed later: the store was busy or away, as against an answer that says no."""
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return status >= 500 or status == 429 or any(words in str(error) for words in _MADE_BY_ANOTHER)
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, (OperationalError, OSError))


def patiently(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `call`, made again after passing errors until PATIENCE_S are over; `call` must bear repetition."""
    deadline, pause_s = time.monotonic() + PATIENCE_S, 0.1
    while True:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if not is_passing(error) or time.monotonic() > deadline:
                raise
        time.sleep(pause_s * random.uniform(0.5, 1.5))
        pause_s = min(2 * pause_s, 5.0)
