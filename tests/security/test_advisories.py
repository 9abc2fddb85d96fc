"""No answer is no all-clear: only an answer about every pin, with nothing known, ends with 0."""

import json
import os
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.security import advisories
from tests.security.advisories import KNOWN, NOT_ASKED, main, outcome_of
from tests.security.pins import pins

PINNED = {"Jinja2": "3.1.6", "ruamel_yaml": "0.18"}


def answer(vulns: dict[str, list[dict]] | None = None, skipped: tuple[str, ...] = ()) -> dict[str, Any]:
    """As pip-audit writes it, under PyPI's spelling of names."""
    found: list[dict[str, Any]] = [
        {"name": n, "skip_reason": "not found on PyPI and could not be audited"} for n in skipped
    ]
    for name, version in (("jinja2", "3.1.6"), ("ruamel-yaml", "0.18")):
        if name not in skipped:
            found.append({"name": name, "version": version, "vulns": (vulns or {}).get(name, [])})
    return {"dependencies": found, "fixes": []}


def hole(*aliases: str, fixed: tuple[str, ...] = ("9",)) -> dict[str, Any]:
    return {"id": "PYSEC-1", "aliases": list(aliases), "fix_versions": list(fixed), "description": ""}


@pytest.mark.parametrize(
    ("by_service", "code", "remark"),
    [
        ({"osv": answer()}, 0, "all clear"),
        ({"osv": None, "pypi": answer()}, 0, "the second service answers"),
        ({"osv": None, "pypi": None}, NOT_ASKED, "nobody answers"),
        (
            {"osv": None, "pypi": answer(skipped=("jinja2", "ruamel-yaml"))},
            NOT_ASKED,
            "a mirror: pip-audit ends with 0",
        ),
        ({"osv": None, "pypi": answer(skipped=("jinja2",))}, NOT_ASKED, "one package was skipped"),
        ({"osv": None, "pypi": {"dependencies": [], "fixes": []}}, NOT_ASKED, "an answer about nothing"),
        ({"osv": answer({"jinja2": [hole()]})}, KNOWN, "a hole"),
        ({"osv": None, "pypi": answer({"jinja2": [hole()]}, ("ruamel-yaml",))}, KNOWN, "a hole counts before a gap"),
        ({"osv": answer({"jinja2": [hole("CVE-1")]})}, 0, "explained by an alias"),
        ({"osv": answer({"jinja2": [hole("CVE-1"), hole("CVE-2")]})}, KNOWN, "one of two is explained"),
    ],
)
def test_the_exit_code_tells_all_clear_from_not_asked(by_service: dict, code: int, remark: str) -> None:
    assert outcome_of(by_service.__getitem__, PINNED, {"CVE-1": "its reason"}).code == code, remark


def test_an_answer_about_another_version_is_none() -> None:
    outcome = outcome_of(lambda _: answer(), PINNED | {"Jinja2": "3.1.7"}, {})
    assert outcome.unasked == ["Jinja2"] and outcome.code == NOT_ASKED


def test_a_hole_is_told_with_its_way_out() -> None:
    outcome = outcome_of(lambda _: answer({"jinja2": [hole("CVE-3")]}), PINNED, {})
    assert outcome.known == ["jinja2 3.1.6: PYSEC-1, fixed in 9"]


def test_not_asked_is_loud_and_fails_unless_offline_is_said(capsys: pytest.CaptureFixture) -> None:
    assert main([], lambda _: None) == NOT_ASKED
    loud = capsys.readouterr().out
    assert loud.startswith(f"ADVISORIES NOT ASKED: no answer about {len(pins())} of {len(pins())} packages")
    assert main(["--offline"], lambda _: None) == 0
    assert capsys.readouterr().out == loud


def test_offline_excuses_no_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advisories, "pins", lambda: PINNED)
    assert main(["--offline"], lambda _: answer({"jinja2": [hole()]})) == KNOWN


class Feed(BaseHTTPRequestHandler):
    """A service of advisories as OSV is one: it knows a hole in jinja2."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        vulns = [{"id": "PYSEC-1", "summary": "a hole", "affected": []}] if asked["package"]["name"] == "jinja2" else []
        content = json.dumps({"vulns": vulns} if vulns else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def audited(requirements: Path, *options: str) -> Any:
    """pip-audit itself, as `advisories` calls it but for `options`."""
    asked: list[list[str]] = []

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(advisories.subprocess, "run", run)
        advisories.pip_audit("osv", requirements)
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    done = subprocess.run([*asked[0], *options], capture_output=True, text=True, timeout=120, env=environment)
    return json.loads(done.stdout) if done.stdout.strip() else None


def test_pip_audit_answers_as_it_is_understood(tmp_path: Path) -> None:
    """A feed on this machine that answers, then one that is gone."""
    pytest.importorskip("pip_audit", reason="pip-audit comes with the extra `security`: make check-security")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("Jinja2==3.1.6\nruamel_yaml==0.18\n")
    server = HTTPServer(("127.0.0.1", 0), Feed)
    url = ["--osv-url", f"http://127.0.0.1:{server.server_port}/v1/query"]
    cache = ["--cache-dir", str(tmp_path / "cache")]
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        outcome = advisories.judge(audited(requirements, *url, *cache), PINNED, {})
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert [line.split(",")[0] for line in outcome.known] == ["jinja2 3.1.6: PYSEC-1"] and not outcome.unasked
    assert audited(requirements, *url, *cache) is None


def test_an_installation_without_pip_audit_is_a_mistake_and_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 1, "", "python: No module named pip_audit")
    monkeypatch.setattr(advisories.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[security\]'"):
        advisories.pip_audit("osv")
