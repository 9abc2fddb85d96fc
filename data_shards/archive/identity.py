"""Takes persons out of names: what could tell who was scanned becomes a salted key, the same for the same person.

A key is HMAC-SHA256 over (kind, text) with a secret salt, cut to 16 hex characters: without the salt nobody can find
the person by trying names, with it two builds agree. DICOM headers name persons, so their series are always hashed;
other scans keep their names unless all are to be hashed. The salt goes to workers, never to disk, log or message.
"""

import hashlib
import hmac
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from data_shards.errors import InputError

SALT_VARIABLE = "MAETRAIN_SALT"
MIN_SALT_BYTES = 16
_WAY_OUT = (
    "write one with `head -c 32 /dev/urandom > salt`, keep it secret and outside the archive, "
    f"and set shards.privacy.salt_file to it or {SALT_VARIABLE} to a text of that length"
)


class PrivacyConfig(BaseModel):
    """What an archive may tell about its persons. Two builds agree on keys when their salts do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: Literal["auto", "keep", "hash"] = Field(
        default="auto",
        description="auto: DICOM and files beside it are hashed, other files keep their names; hash: all is; "
        "keep: nothing, DICOM is refused",
    )
    salt_file: Path | None = Field(
        default=None, description=f"file with the secret salt, at least {MIN_SALT_BYTES} bytes; or {SALT_VARIABLE}"
    )


@dataclass(frozen=True)
class Identity:
    """The rule for names and the secret for keys. Without a salt it can't make keys."""

    names: Literal["auto", "keep", "hash"] = "auto"
    salt: bytes | None = field(default=None, repr=False)

    @property
    def hashes_files(self) -> bool:
        return self.names == "hash"

    def key(self, kind: str, *texts: str) -> str:
        """16 hex characters for the given kind ("case", "subject", "session") and texts.

        Raises InputError without a salt.
        """
        if self.salt is None:
            raise InputError(f"names are to be hashed, but there is no salt: {_WAY_OUT}")
        # JSON keeps ("a", "bc") and ("ab", "c") apart, and takes any text a broken header may hold.
        message = json.dumps([kind, *texts]).encode()
        return hmac.new(self.salt, message, hashlib.sha256).hexdigest()[:16]

    def check_dicom(self) -> None:
        """Raises InputError where DICOM series can't be named: names are to be kept, or there is no salt."""
        if self.names == "keep":
            raise InputError(
                "shards.privacy.names is keep, but the archive holds DICOM, whose names are persons: "
                "set it to auto or hash"
            )
        if self.salt is None:
            raise InputError(f"the archive holds DICOM, whose names must be hashed, but there is no salt: {_WAY_OUT}")


def read_identity(config: PrivacyConfig, environ: Mapping[str, str]) -> Identity:
    """The identity a run works with, its salt from `config.salt_file` or from MAETRAIN_SALT in `environ`.

    Line ends after the salt don't count. Raises InputError for an unreadable or short salt, for two different ones,
    and for names to be hashed without one.
    """
    salts: list[bytes] = []
    if config.salt_file is not None:
        try:
            salts.append(config.salt_file.read_bytes().rstrip(b"\r\n"))
        except OSError as error:
            raise InputError(f"shards.privacy.salt_file can't be read ({error.strerror}): {_WAY_OUT}") from None
    if environ.get(SALT_VARIABLE):
        salts.append(environ[SALT_VARIABLE].encode(errors="surrogateescape").rstrip(b"\r\n"))
    if len(set(salts)) > 1:
        raise InputError(f"shards.privacy.salt_file and {SALT_VARIABLE} hold different salts: unset one of them")
    salt = salts[0] if salts else None
    if salt is not None and len(salt) < MIN_SALT_BYTES:
        raise InputError(f"the salt has {len(salt)} bytes, fewer than {MIN_SALT_BYTES}: {_WAY_OUT}")
    identity = Identity(config.names, salt)
    if identity.hashes_files:
        identity.key("check")
    return identity


def same_text(text: str) -> str:
    """One spelling for what DICOM calls equal: blanks, NULs and empty name parts at the ends don't count."""
    return unicodedata.normalize("NFC", text).replace("\0", " ").strip().rstrip("^= ")
