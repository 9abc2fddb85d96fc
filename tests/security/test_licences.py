"""The page of licences says what is pinned, as it is installed, and nothing that is not allowed."""

from email.message import Message
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

import pytest

from tests.security import licences
from tests.security.licences import DECLARED, EXPLAINED, PAGE, is_allowed, licence_of
from tests.security.pins import pins

TABLE = PAGE.read_text().partition("|---|---|---|---|\n")[2]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines()]


def declared(**fields: Any) -> Any:
    message = Message()
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            message[name.replace("_", "-")] = one
    return message


def test_the_page_lists_exactly_what_is_pinned() -> None:
    assert {name: version for name, version, *_ in ROWS} == pins(), "run `make licences`"
    assert len(ROWS) == len(pins())


def test_every_licence_on_the_page_is_allowed_or_explained() -> None:
    for name, _, licence, remark in ROWS:
        assert remark == EXPLAINED.get(name, "") and (is_allowed(licence) or remark), name


def test_nothing_is_explained_or_declared_that_is_not_pinned() -> None:
    assert {*EXPLAINED, *DECLARED} <= {*pins()}
    assert not [name for name, _, licence, _ in ROWS if name in EXPLAINED and is_allowed(licence)]


def test_the_page_says_what_the_installed_packages_declare() -> None:
    num_seen = 0
    for name, version, licence, _ in ROWS:
        try:
            found = metadata(name)
        except PackageNotFoundError:
            continue  # of another extra
        if found["Version"].split("+")[0] == version:
            assert licence_of(name, found) == licence, name
            num_seen += 1
    assert num_seen > 100


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"License_Expression": "MIT AND Zlib", "License": "GPL"}, "MIT AND Zlib"),
        ({"License": "Apache License, Version 2.0"}, "Apache-2.0"),
        ({"License": "Copyright 2010\nand more", "Classifier": ["License :: OSI Approved :: BSD License"]}, "BSD"),
        ({"Classifier": ["Topic :: Other", "License :: OSI Approved :: MIT License"]}, "MIT"),
    ],
)  # fmt: skip
def test_a_licence_is_read_where_the_metadata_has_it(fields: dict, said: str) -> None:
    assert licence_of("some", declared(**fields)) == said


@pytest.mark.parametrize(
    "fields", [{}, {"License": "ask us"}, {"Classifier": ["License :: Free for non-commercial use"]}]
)
def test_an_unknown_licence_is_an_error_and_no_guess(fields: dict) -> None:
    with pytest.raises(KeyError, match="some: no licence known"):
        licence_of("some", declared(**fields))


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("MIT AND AGPL-3.0-only OR GPL-3.0-only", False),
        ("Apache-2.0 AND Apache-2.0 WITH LLVM-exception", True),
        ("", False),
    ],
)
def test_one_of_the_alternatives_must_be_allowed_in_all_its_parts(expression: str, allowed: bool) -> None:
    assert is_allowed(expression) is allowed


def test_the_page_is_not_written_with_a_licence_that_nobody_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licences, "pins", lambda: {"numpy": "2"})
    monkeypatch.setattr(licences, "licence_of", lambda *_: "AGPL-3.0-only")
    with pytest.raises(KeyError, match="numpy: AGPL-3.0-only is not allowed"):
        licences.page()
