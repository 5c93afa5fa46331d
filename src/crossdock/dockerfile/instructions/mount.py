"""The value of ``RUN --mount=``: bind, cache, tmpfs, secret and ssh mounts.

Spec: Dockerfile reference "RUN --mount".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossdock.dockerfile.text import did_you_mean, parse_bool, quote
from crossdock.dockerfile.words import csv_fields
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MountError", "MountSpec", "mount_source", "parse_mount"]

_TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
_SHARING = ("shared", "private", "locked")
_KEYS = (
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
)
_ALIASES = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
    "rw": "readwrite",
}


class MountError(ValueError):
    """The mount is malformed; the caller adds the position."""


class MountSpec(Record):
    """One mount, expanded; ``None`` for what was not given."""

    type: str = "bind"
    from_: str = ""
    source: str = ""
    target: str = ""
    readonly: bool = True
    #: bytes, of a tmpfs
    size: int = 0
    id: str = ""
    sharing: str = ""
    required: bool = False
    #: environment variable that gets a secret
    env: str | None = None
    #: permission bits
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


def mount_source(text: str) -> str:
    """Return what ``from=`` names, before anything is expanded; "" when there is none.

    Raises: MountError.
    """
    source = ""
    for field in _fields(text):
        key, equals, value = field.partition("=")
        if equals and key.lower() == "from":
            at = value.find("$")
            if at >= 0 and at != len(value) - 1:
                msg = "'from' doesn't support variable expansion, define alias stage instead"
                raise MountError(msg)
            source = value
    return source


def parse_mount(text: str, expander: Callable[[str], str]) -> MountSpec:
    """Read a mount; ``expander`` replaces the variables in values.

    Raises: MountError.
    """
    out: dict[str, Any] = {"type": "bind"}
    for field in _fields(text):
        key, equals, value = field.partition("=")
        key = key.lower()
        name = _ALIASES.get(key, key)
        if not equals:
            if name not in ("readonly", "readwrite", "required"):
                msg = f"invalid field '{field}' must be a key=value pair"
                raise MountError(msg)
            value = "true"
        _set_field(out, name, key, field, expander(value))
    return _checked(out)


def _fields(text: str) -> list[str]:
    try:
        return csv_fields(text)
    except ValueError as exc:
        msg = f"failed to parse csv mounts: {exc}"
        raise MountError(msg) from None


def _set_field(out: dict[str, Any], name: str, key: str, field: str, value: str) -> None:
    if key not in _KEYS:
        raise MountError(did_you_mean(f"unexpected key '{key}' in '{field}'", key, _KEYS))
    kind = str(out["type"])
    allowed = {"required": ("secret", "ssh"), "size": ("tmpfs",)}.get(name)
    if allowed is not None and kind not in allowed:
        msg = f"unexpected key '{key}' for mount type '{kind}'"
        raise MountError(msg)
    match name:
        case "type":
            out["type"] = _choice("mount type", value, _TYPES)
        case "sharing":
            out["sharing"] = _choice("sharing value", value, _SHARING)
        case "from":
            out["from_"] = value
        case "source" | "target" | "id" | "env":
            out[name] = value
        case "readonly" | "readwrite" | "required":
            flag = _bool(key, value)
            if name == "required":
                out["required"] = flag
            else:
                out["readonly"] = flag == (name == "readonly")
        case "size":
            out["size"] = _size(key, value)
        case "mode":
            out["mode"] = _number(key, value, 8)
        case _:
            out[name] = _number(key, value, 10)


def _choice(what: str, value: str, options: tuple[str, ...]) -> str:
    if value.lower() not in options:
        raise MountError(did_you_mean(f"unsupported {what} {quote(value)}", value, options))
    return value.lower()


def _bool(key: str, value: str) -> bool:
    try:
        return parse_bool(value)
    except ValueError:
        msg = f"invalid value for {key}: {value}"
        raise MountError(msg) from None


def _number(key: str, value: str, base: int) -> int:
    digits = "01234567" if base == 8 else "0123456789"
    if value and all(ch in digits for ch in value) and len(value) < 20 and int(value, base) < 1 << 32:
        return int(value, base)
    msg = f"invalid value {value} for {key}"
    raise MountError(msg)


def _size(key: str, value: str) -> int:
    """Read a size with binary units: ``64m``, ``1.5GiB``."""
    text = value.strip().lower().removesuffix("b").removesuffix("i").strip()
    scale = 1
    if text[-1:] and text[-1] in "kmgtp":
        scale = 1024 ** ("kmgtp".index(text[-1]) + 1)
        text = text[:-1].strip()
    number = text.replace(".", "", 1)
    if not (number.isascii() and number.isdigit()) or len(number) > 18:
        msg = f"invalid value for {key}: {value}"
        raise MountError(msg)
    return int(float(text) * scale) if "." in text else int(text) * scale


def _checked(out: dict[str, Any]) -> MountSpec:
    kind = str(out["type"])
    if kind not in ("secret", "ssh", "cache"):
        for name in ("mode", "uid", "gid"):
            if name in out:
                msg = f"{name} not allowed for {quote(kind)} type mounts"
                raise MountError(msg)
    out.setdefault("readonly", kind not in ("cache", "tmpfs"))
    if kind == "secret":
        _check_secret(out)
    if out.get("sharing") and kind != "cache":
        msg = f"invalid cache sharing set for {kind} mount"
        raise MountError(msg)
    if kind == "ssh" and out.get("source"):
        msg = "ssh does not support source"
        raise MountError(msg)
    return MountSpec(**out)


def _check_secret(out: dict[str, Any]) -> None:
    if out.get("from_"):
        msg = "secret mount should not have a from"
    elif out.get("sharing"):
        msg = "secret mount should not define sharing"
    elif not (out.get("source") or out.get("target") or out.get("id")):
        msg = "invalid secret mount. one of source, target required"
    elif out.get("source") and out.get("id"):
        msg = "both source and id can't be set"
    else:
        return
    raise MountError(msg)
