"""`python -m maetrain.train SETUP.json`, alone or under torchrun: the pretraining loop without Ray and MLflow.

SETUP.json is a `PretrainSetup`; `maetrain pretrain ... --setup-only SETUP.json` writes one. A SIGTERM saves and stops.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from data_shards.errors import InputError
from maetrain.train.config import PretrainSetup
from maetrain.train.curve import StepInfo
from maetrain.train.group import joined_group
from maetrain.train.pretrain import pretrain
from maetrain.train.wishes import Stopped, Wishes, sigterm_stops


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        setup = PretrainSetup.model_validate(json.loads(Path(arguments[0]).read_text()))
        wishes = Wishes()
        with sigterm_stops(wishes), joined_group() as who:
            pretrain(setup, who, _show(setup.pretrain.steps), _say, wishes=wishes)
    except Stopped as stopped:
        _say(str(stopped))
        return 128 + stopped.signal_number
    except (InputError, OSError, json.JSONDecodeError, ValidationError) as error:
        print(f"maetrain: {error}", file=sys.stderr)
        return 2
    return 0


def _show(steps: int) -> Callable[[StepInfo], None]:
    def show(info: StepInfo) -> None:
        print(f"step {info.step}/{steps}  loss {info.loss:.6f}  {info.volumes_per_s:.1f} volumes/s", flush=True)

    return show


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
