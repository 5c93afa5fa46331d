"""EXPOSE: ports and ranges, with the legacy ``host:container`` forms.

Spec: Dockerfile reference "EXPOSE"; moby/buildkit ``convert_expose.go`` for the legacy forms.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, cast

from crossdock.dockerfile.convert.history import record
from crossdock.dockerfile.expand import ExpandError, expand_words
from crossdock.dockerfile.source import pinpoint
from crossdock.dockerfile.text import did_you_mean, quote
from crossdock.errors import DockerfileError

if TYPE_CHECKING:
    from crossdock.dockerfile.convert.job import Job
    from crossdock.dockerfile.convert.stage import Command, StageState
    from crossdock.dockerfile.instructions.simple import Expose

__all__ = ["dispatch_expose", "parse_port"]

_PROTOCOLS = ("tcp", "udp", "sctp")


def dispatch_expose(job: Job, state: StageState, command: Command) -> None:
    """EXPOSE."""
    instruction = cast("Expose", command.instruction)
    ports: list[str] = []
    for text in instruction.ports:
        try:
            words = expand_words(text, state.env, escape=job.escape)
        except ExpandError as exc:
            raise DockerfileError(str(exc), source=instruction.where) from None
        for word in words:
            _report(job, instruction, word)
            try:
                ports += parse_port(word)
            except ValueError as exc:
                raise DockerfileError(str(exc), source=pinpoint(instruction.where, text)) from None
    known = state.config.exposed_ports
    known += [p for p in dict.fromkeys(ports) if p not in known]
    record(state, f"EXPOSE [{' '.join(ports)}]", layer=False, created=job.created)


def _report(job: Job, instruction: Expose, word: str) -> None:
    host, _, port = word.rpartition(":")
    protocol = port.partition("/")[2]
    if protocol != protocol.lower() and protocol.lower() in _PROTOCOLS:
        job.linter.report("ExposeProtoCasing", instruction.where, word, comments=instruction.comments)
    if host:
        job.linter.report("ExposeInvalidFormat", instruction.where, word, comments=instruction.comments)


def parse_port(text: str) -> list[str]:
    """Return ``port/protocol`` for every port of ``[ip:][host:]port[-port][/protocol]``.

    Raises: ValueError.
    """
    rest, _, last = text.rpartition(":")
    ip, _, host_port = rest.rpartition(":")
    port, slash, protocol = last.partition("/")
    if not port:
        msg = f"invalid port: {quote(text)}: no port specified"
        raise ValueError(msg)
    protocol = protocol.lower() if slash and protocol else "tcp"
    if protocol not in _PROTOCOLS:
        msg = did_you_mean(f"invalid port: {quote(text)}: invalid proto: {protocol}", protocol, _PROTOCOLS)
        raise ValueError(msg)
    if ip:
        _check_ip(ip)
    try:
        first, final = _range(port)
    except ValueError:
        msg = f"invalid containerPort: {port}"
        raise ValueError(msg) from None
    if host_port:
        _check_host_ports(host_port, port, final - first)
    return [f"{n}/{protocol}" for n in range(first, final + 1)]


def _check_ip(text: str) -> None:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        msg = f"invalid IP address: {text}"
        raise ValueError(msg) from None


def _check_host_ports(text: str, port: str, width: int) -> None:
    try:
        first, final = _range(text)
    except ValueError:
        msg = f"invalid hostPort: {text}"
        raise ValueError(msg) from None
    if final - first != width and width != 0:
        msg = f"invalid ranges specified for container and host Ports: {port} and {text}"
        raise ValueError(msg)


def _range(text: str) -> tuple[int, int]:
    first, dash, final = text.partition("-")
    low = _port(first)
    high = _port(final) if dash else low
    if high < low:
        msg = f"invalid port range: {text}"
        raise ValueError(msg)
    return low, high


def _port(text: str) -> int:
    digits = text.removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9 or int(digits) > 65535:
        msg = "value out of range (0-65535)"
        raise ValueError(msg)
    return int(digits)
