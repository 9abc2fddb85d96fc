"""`python -m maetrain.train SETUP.json`, alone or under torchrun: the pretraining loop without Ray and MLflow.

SETUP.json is a `PretrainSetup`; `maetrain pretrain ... --setup-only SETUP.json` writes one.
"""

import json
import sys
from pathlib import Path

from pydantic import ValidationError

from data_shards.errors import InputError
from maetrain.train.config import PretrainSetup
from maetrain.train.group import joined_group
from maetrain.train.pretrain import StepInfo, pretrain


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        setup = PretrainSetup.model_validate(json.loads(Path(arguments[0]).read_text()))
        with joined_group() as who:
            pretrain(setup, who, _print_step, print)
    except (InputError, OSError, json.JSONDecodeError, ValidationError) as error:
        print(f"maetrain: {error}", file=sys.stderr)
        return 2
    return 0


def _print_step(info: StepInfo) -> None:
    print(f"step {info.step}/{info.steps}  loss {info.loss:.6f}  {info.volumes_per_s:.1f} volumes/s", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
