"""What a sweep was asked for, kept in its folder: `maetrain sweep --resume --out FOLDER` needs nothing else."""

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from data_shards.errors import InputError
from data_shards.formats.files import is_remote, location, write_text
from maetrain.checkpoint.commit import read_model
from maetrain.checkpoint.fetched import fetched_handover
from maetrain.finetune.config import ARM
from maetrain.recipes.config import RunConfig
from maetrain.tracking.uri import HIDDEN, absolute_store, without_secrets

ORDER = "sweep.json"


class SweepOrder(BaseModel):
    """`handovers`: arm -> folders of its encoders. `elsewhere`: name -> labelled archive of another study.

    `tracking_uri`: without its password, which a file is no place for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: RunConfig
    shards: str
    data: Path
    handovers: dict[str, list[Path]]
    elsewhere: dict[str, Path]
    tracking_uri: str | None = None

    def tracked_at(self, uri: str | None) -> "SweepOrder":
        """The order with another store, where one is given. InputError where its kept one lacks a password."""
        if uri:
            return self.model_copy(update={"tracking_uri": absolute_store(uri)})
        if self.tracking_uri and HIDDEN in self.tracking_uri:
            raise InputError(
                f"{ORDER} keeps no password: give --tracking-uri {self.tracking_uri} again, with the password in it"
            )
        return self

    def save(self, out: Path) -> None:
        kept = self.tracking_uri and without_secrets(self.tracking_uri)
        write_text(out / ORDER, self.model_copy(update={"tracking_uri": kept}).model_dump_json(indent=1))

    @classmethod
    def load(cls, out: Path) -> "SweepOrder":
        """InputError where no sweep was ordered in `out`, or another version of this program ordered it."""
        path = out / ORDER
        if not path.is_file():
            raise InputError(f"{out}: no sweep to go on with ({ORDER} is missing); give a recipe, --shards and --data")
        try:
            return read_model(path, cls)
        except ValueError as error:
            raise InputError(f"{path}: not an order of this version ({error}); give the whole command again") from None


def named_handovers(values: Sequence[str], out: Path) -> dict[str, list[Path]]:
    """--handover [ARM=]FOLDER each, `mae` where none is named; those in buckets are copied into OUT/handovers."""
    local = []
    for value in values:
        arm, equals, folder = value.partition("=") if re.match(f"{ARM[:-1]}=", value) else ("", "", value)
        place = location(folder)
        local.append(f"{arm}{equals}{fetched_handover(place, out / 'handovers')}" if is_remote(place) else value)
    return named_folders("--handover", local, unnamed="mae")


def named_folders(option: str, values: Sequence[str], unnamed: str = "") -> dict[str, list[Path]]:
    """NAME=FOLDER each; without a name it is called `unnamed`, if that may be. InputError for a pair given twice."""
    found: dict[str, list[Path]] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or "/" in name or Path(value).is_dir():  # a folder's own name may hold a =
            name, folder = unnamed, value
        if not (name and folder):
            raise InputError(f"{option} {value}: write NAME=FOLDER")
        if not re.fullmatch(ARM, name):
            raise InputError(
                f"{option} {value}: {name!r} is no name; use small letters, digits and '-', a letter first"
            )
        if not Path(folder).is_dir():
            raise InputError(f"{option} {value}: {folder} is not a folder")
        if (resolved := Path(folder).resolve()) in found.setdefault(name, []):
            raise InputError(f"{option} {value}: given twice")
        found[name].append(resolved)
    return found


def named_folder(option: str, values: Sequence[str]) -> dict[str, Path]:
    """The same, with one folder a name."""
    found = named_folders(option, values)
    for name, (first, *others) in found.items():
        if others:
            raise InputError(f"{option}: two folders for {name}: {first} and {others[0]}; give one")
    return {name: first for name, (first,) in found.items()}
