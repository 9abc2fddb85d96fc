"""What is shown and kept of a tracking store's address."""

from pathlib import Path

import pytest

from maetrain.tracking.uri import absolute_store, without_secrets


@pytest.mark.parametrize(
    ("uri", "shown", "remark"),
    [
        ("http://mlflow:5000", "http://mlflow:5000", "a port is no password"),
        ("https://me:secret@mlflow/x", "https://me:***@mlflow/x", "basic authentication"),
        ("https://token@mlflow", "https://***@mlflow", "a token in place of a name"),
        ("postgresql+psycopg://me:se/c@ret@db/x", "postgresql+psycopg://me:***@db/x", "signs that ought to be escaped"),
        ("postgresql://me@/x?host=/run/pg", "postgresql://me@/x?host=/run/pg", "a name alone is no secret"),
        ("postgresql://db/x?password=secret&user=me", "postgresql://db/x?password=***&user=me", "libpq's way"),
        ("sqlite:////home/me@here/a:b@c.db", "sqlite:////home/me@here/a:b@c.db", "a file has none"),
    ],
)
def test_passwords_and_tokens_are_hidden(uri: str, shown: str, remark: str) -> None:
    assert without_secrets(uri) == shown, remark
    assert without_secrets(shown) == shown


def test_a_file_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_store("sqlite:///runs/a.db") == f"sqlite:///{tmp_path}/runs/a.db"
    for uri in (f"sqlite:///{tmp_path}/a.db", "http://mlflow:5000", "postgresql://me@/x?host=/run"):
        assert absolute_store(uri) == uri
