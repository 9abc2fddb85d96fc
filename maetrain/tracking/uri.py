"""The address of a tracking store, as a user gives it and as it may be shown and kept."""

import re
from pathlib import Path

HIDDEN = "***"
_RELATIVE = re.compile("sqlite:///(?!/)(.+)")
_SECRETS = (
    (re.compile(r"(?<=://)([^/:@\s]*):\S*@"), rf"\1:{HIDDEN}@"),  # user:password@host
    (re.compile(r"(https?://)[^/:@\s]+@"), rf"\1{HIDDEN}@"),  # token@host
    (re.compile(r"(?<=password=)[^&\s]+"), HIDDEN),
)


def without_secrets(text: str) -> str:
    """A URI, or a line with some, with HIDDEN in place of passwords and tokens."""
    for secret, shown in _SECRETS:
        text = secret.sub(shown, text)
    return text


def absolute_store(uri: str) -> str:
    """The same store from every folder: a sqlite file is named by its whole path."""
    relative = _RELATIVE.fullmatch(uri)
    return f"sqlite:///{Path(relative[1]).resolve()}" if relative else uri
