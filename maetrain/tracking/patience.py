"""How long a tracking store is waited for, in one place and alike for sqlite, PostgreSQL and a server.

Sqlite has one writer at a time and PostgreSQL a limit of connections, so with many processes a call fails now and then
with "database is locked" or "too many clients", or because another was faster; a server may be down for a minute. Such
calls are made again, after pauses drawn at random, lest all come back together. MLflow's own retries are off: they take
minutes, serve HTTP alone, and repeat a `create_run` whose answer was lost, which makes two runs. The defaults changed
here are those of this process; a user's own MLFLOW_... variables stand above them, and none is set for child processes.

A process has one store. Where it was waited for in vain, the calls that follow are made once each, until one succeeds:
the end of a command must not wait four minutes for each thing it has to log.
"""

import errno
import logging
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from mlflow import environment_variables as settings
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as database
from requests import ConnectionError as NoConnection
from requests import HTTPError, Timeout
from requests.exceptions import ChunkedEncodingError
from sqlalchemy.exc import OperationalError

from data_shards.errors import InputError
from maetrain.tracking.uri import without_secrets

# it writes the traceback of each error that it raises besides, a hundred times while a database is busy
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

PATIENCE_S = 240.0
FIRST_S = 5.0  # at the first contact of a command, when the URI may be wrong as well

database.MAX_RETRY_COUNT = 1  # tries of MLflow's to connect to a database; its 10 take 100 s
settings.MLFLOW_HTTP_REQUEST_MAX_RETRIES.default = 0
settings.MLFLOW_HTTP_REQUEST_TIMEOUT.default = 20  # s; MLflow's 120 is long for a thread that shall end with the sweep
if not (settings.MLFLOW_SQLALCHEMYSTORE_POOL_SIZE.get() or settings.MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW.get()):
    # one call takes up to three connections, and a pool keeps them: 40 quiet processes would use up PostgreSQL's 100
    settings.MLFLOW_SQLALCHEMYSTORE_POOLCLASS.default = "NullPool"

# how sqlite, PostgreSQL and MySQL say that another process has just made the same row, which MLflow looks up before it
# makes it: two jobs that are the first to log a dataset. The next call finds it.
_MADE_BY_ANOTHER = ("UNIQUE constraint failed", "UniqueViolation", "Duplicate entry")

# no connection, and no class of its own for it; any other OSError is this machine's, such as a full disk
_UNREACHABLE = {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}

P = ParamSpec("P")
T = TypeVar("T")

_is_away = threading.Event()


class StoreAway(InputError):
    """The store was waited for in vain. Ends a command in one line where nothing can be done without it."""


def is_passing(error: Exception) -> bool:
    """Whether the same call may succeed later: the store was busy or away, as against an answer that says no."""
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return status >= 500 or status == 429 or any(words in str(error) for words in _MADE_BY_ANOTHER)
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code == 429
    if isinstance(error, (OperationalError, NoConnection, Timeout, ChunkedEncodingError)):
        return True
    is_line = isinstance(error, (ConnectionError, TimeoutError, socket.gaierror))
    return is_line or (isinstance(error, OSError) and error.errno in _UNREACHABLE)


def patiently(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `call`, made again after passing errors until PATIENCE_S are over; `call` must bear repetition.

    StoreAway when they are.
    """
    return within(0.0 if _is_away.is_set() else PATIENCE_S, call, *args, **kwargs)


def within(patience_s: float, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`patiently` for so long."""
    deadline, pause_s = time.monotonic() + patience_s, 0.1
    while True:
        try:
            answer = call(*args, **kwargs)
        except Exception as error:
            if not is_passing(error):
                raise
            if time.monotonic() >= deadline:
                give_up()
                why = first_line(error)
                raise StoreAway(
                    f"the MLflow store does not answer ({why}): the same command logs what is missing once it answers"
                ) from error
        else:
            _is_away.clear()
            return answer
        time.sleep(pause_s * random.uniform(0.5, 1.5))  # nosec B311 # nobody gains by guessing it
        pause_s = min(2 * pause_s, 5.0)


def give_up() -> None:
    """The store was waited for elsewhere."""
    _is_away.set()


def has_given_up() -> bool:
    return _is_away.is_set()


def first_line(error: BaseException) -> str:
    """For one line of ours; no more of it than tells what it is about, and no password."""
    return without_secrets((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]
