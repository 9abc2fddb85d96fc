"""Settings as a hash, and what differs between two sets of settings in words."""

import hashlib
import json
from collections.abc import Mapping


def fingerprint(settings: Mapping) -> str:
    """SHA-256 of the canonical JSON of `settings`."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """One "key: old -> new" per setting that differs, nested keys joined by dots."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {_short(a)} -> {_short(b)}")
    return lines


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
