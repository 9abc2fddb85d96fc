"""Puts the files of a report in the place of an earlier report's.

A report of fewer arms or pictures has fewer files. What the earlier one wrote and this one does not is removed, or it
would be read, and uploaded, as if it belonged to the new numbers. Which files are a report's own stands in its
summary.json; whatever else lies in the folder stays.
"""

import json
import shutil
from pathlib import Path

from data_shards.formats.files import published, remove_half_written

SUMMARY, PAGE = "summary.json", "index.html"


def replace_report(staged: Path, out_dir: Path) -> Path:
    """Move what lies in `staged` to `out_dir`, each file whole, the page last. Returns the page's path."""
    names = {path.name for path in staged.iterdir()}
    for name in _files_of(out_dir) - names:
        if (out_dir / name).is_file():
            (out_dir / name).unlink()
    for name in sorted(names, key=lambda name: (name == PAGE, name)):
        remove_half_written(out_dir / name)
        with published(out_dir / name) as temporary:
            shutil.copyfile(staged / name, temporary)
    return out_dir / PAGE


def _files_of(out_dir: Path) -> set[str]:
    """Names that the summary in the folder gives; none without a readable one."""
    try:
        summary = json.loads((out_dir / SUMMARY).read_bytes())
        named = summary["files"] if "headline" in summary else ()  # another program's file says nothing of ours
        return {name for name in named if Path(name).name == name}  # nothing outside the folder
    except (OSError, ValueError, TypeError, KeyError):
        return set()
