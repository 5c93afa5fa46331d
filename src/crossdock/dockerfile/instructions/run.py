"""``RUN``: shell form, exec form, here-documents; ``--mount --network --security --device``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.instructions.base import InlineFile, Instruction, list_flag, parse_flags, text_flag
from crossdock.dockerfile.instructions.command import command_args
from crossdock.dockerfile.text import did_you_mean, parse_bool, quote
from crossdock.dockerfile.words import csv_fields
from crossdock.record import Record

if TYPE_CHECKING:
    from crossdock.dockerfile.instructions.base import Statement

__all__ = ["Device", "Run", "parse"]

_FLAGS: dict[str, type] = {"mount": list, "network": str, "security": str, "device": list}
_NETWORKS = ("default", "none", "host")
_SECURITY = ("sandbox", "insecure")


class Device(Record):
    """A CDI device."""

    name: str
    required: bool = False


class Run(Instruction):
    """``RUN``; a shell form has one argument."""

    args: tuple[str, ...]
    json: bool
    #: here-documents of the command
    files: tuple[InlineFile, ...] = ()
    #: mount specifications as written; variables are expanded in the stage
    mounts: tuple[str, ...] = ()
    #: stage or image names the mounts take their files from, one per mount, "" for none
    mount_sources: tuple[str, ...] = ()
    network: str = "default"
    security: str = "sandbox"
    devices: tuple[Device, ...] = ()


def parse(s: Statement) -> Run:
    """Read a RUN.

    Raises: DockerfileError.
    """
    flags = parse_flags(s, _FLAGS)
    args, json = command_args(s)
    network = text_flag(flags, "network", "default")
    security = text_flag(flags, "security", "sandbox")
    mounts = list_flag(flags, "mount")
    sources = tuple(_mount_source(s, m) for m in mounts)
    if network not in _NETWORKS:
        message = did_you_mean(f"invalid network mode {quote(network)}", network, _NETWORKS)
        raise s.error(message, f"--network={network}")
    if security not in _SECURITY:
        message = did_you_mean(f"security {quote(security)} is not valid", security, _SECURITY)
        raise s.error(message, f"--security={security}")
    files = tuple(InlineFile(name=h.name, data=h.content, expand=h.expand, strip=h.strip) for h in s.heredocs)
    return Run(
        **s.common(),
        args=args,
        json=json,
        files=files,
        mounts=mounts,
        mount_sources=sources,
        network=network,
        security=security,
        devices=tuple(_device(s, text) for text in list_flag(flags, "device")),
    )


def _mount_source(s: Statement, text: str) -> str:
    from crossdock.dockerfile.instructions.mount import MountError, mount_source

    try:
        return mount_source(text)
    except MountError as exc:
        raise s.error(str(exc), text) from None


def _device(s: Statement, text: str) -> Device:
    try:
        fields = csv_fields(text)
    except ValueError as exc:
        message = f"failed to parse csv devices: {exc}"
        raise s.error(message, text) from None
    name = ""
    required = False
    for field in fields:
        key, equals, value = field.partition("=")
        key = key.lower()
        if key == "required":
            try:
                required = parse_bool(value) if equals else True
            except ValueError:
                message = f"invalid value for {key}: {value}"
                raise s.error(message, field) from None
        elif key == "name" and equals:
            if name:
                message = f"device name already set to {name}"
                raise s.error(message, field)
            name = value
        elif not name:
            name = field
        elif not equals:
            message = f"invalid field '{field}' must be a key=value pair"
            raise s.error(message, field)
        else:
            message = did_you_mean(f"unexpected key '{key}' in '{field}'", key, ("name", "required"))
            raise s.error(message, field)
    return Device(name=name, required=required)
