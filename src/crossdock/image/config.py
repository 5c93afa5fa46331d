"""Image configs: what runs, how the layers stack, and the history.

Unknown fields are kept, so that a config that was read and changed loses nothing.

Spec: image-spec 1.1, config.md; moby/docker-image-spec v1 (healthcheck, onbuild, shell).
"""

from __future__ import annotations

import json
from typing import Any

from crossdock.errors import LayerError
from crossdock.image import gojson
from crossdock.image.platform import Platform
from crossdock.record import Record, field

__all__ = ["Healthcheck", "History", "ImageConfig"]


class Healthcheck(Record, frozen=False):
    """``HEALTHCHECK``; durations in nanoseconds, 0 = inherit."""

    test: list[str] = field(default_factory=list)
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0

    def to_json(self) -> dict[str, object]:
        """Return docker's JSON object; zero values are left out."""
        pairs = (
            ("Test", self.test),
            ("Interval", self.interval_ns),
            ("Timeout", self.timeout_ns),
            ("StartPeriod", self.start_period_ns),
            ("StartInterval", self.start_interval_ns),
            ("Retries", self.retries),
        )
        return {k: v for k, v in pairs if v}


class History(Record, frozen=False):
    """One history entry, oldest first in the config."""

    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the JSON object, in Go's field order, empty fields left out."""
        pairs = (
            ("created", self.created),
            ("created_by", self.created_by),
            ("author", self.author),
            ("comment", self.comment),
            ("empty_layer", self.empty_layer),
        )
        return {k: v for k, v in pairs if v}


class ImageConfig(Record, frozen=False):
    """A mutable image config; ``None`` means the field is absent, which is not the same as empty."""

    platform: Platform
    created: str | None = None
    author: str = ""
    user: str = ""
    exposed_ports: list[str] = field(default_factory=list)
    env: list[str] = field(default_factory=list)
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    volumes: list[str] = field(default_factory=list)
    working_dir: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    args_escaped: bool = False
    healthcheck: Healthcheck | None = None
    on_build: list[str] | None = None
    shell: list[str] | None = None
    diff_ids: list[str] = field(default_factory=list)
    history: list[History] = field(default_factory=list)
    #: unknown top-level and ``config`` fields of the document this was read from
    extra: dict[str, Any] = field(default_factory=dict)
    extra_config: dict[str, Any] = field(default_factory=dict)

    def env_map(self) -> dict[str, str]:
        """Return the environment as a mapping; the last of repeated names wins."""
        return {k: v for k, _, v in (item.partition("=") for item in self.env)}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document; top-level keys sorted as BuildKit's exporter writes them."""
        out: dict[str, Any] = {**self.extra, **self.platform.to_json()}
        if self.created is not None:
            out["created"] = self.created
        if self.author:
            out["author"] = self.author
        out["config"] = self._config_dict()
        out["rootfs"] = {"type": "layers", "diff_ids": self.diff_ids}
        out["history"] = [h.to_json() for h in self.history]
        return dict(sorted(out.items()))

    def to_json(self) -> bytes:
        """Serialise; the same config always gives the same bytes."""
        return gojson.dumps(self.to_dict())

    def _config_dict(self) -> dict[str, Any]:
        pairs: tuple[tuple[str, Any], ...] = (
            ("User", self.user or None),
            ("ExposedPorts", {p: {} for p in sorted(self.exposed_ports)} or None),
            ("Env", self.env or None),
            ("Entrypoint", self.entrypoint),
            ("Cmd", self.cmd),
            ("Volumes", {v: {} for v in sorted(self.volumes)} or None),
            ("WorkingDir", self.working_dir or None),
            ("Labels", dict(sorted(self.labels.items())) or None),
            ("StopSignal", self.stop_signal or None),
            ("ArgsEscaped", self.args_escaped or None),
            ("Healthcheck", self.healthcheck.to_json() if self.healthcheck else None),
            ("OnBuild", self.on_build),
            ("Shell", self.shell or None),
        )
        return {**{k: v for k, v in pairs if v is not None}, **self.extra_config}

    @classmethod
    def from_json(cls, raw: bytes, where: str) -> ImageConfig:
        """Read a config.

        Raises: LayerError naming ``where`` when it is not a JSON object of the expected shape.
        """
        try:
            data = json.loads(raw)
        except (ValueError, RecursionError) as exc:
            summary = f"{where}: image config is not valid JSON: {exc}"
            raise LayerError(summary) from exc
        if not isinstance(data, dict) or not isinstance(data.get("config"), dict | None):
            summary = f"{where}: image config is not a JSON object"
            raise LayerError(summary)
        try:
            return cls._from_dict(data)
        except (TypeError, AttributeError, ValueError) as exc:
            summary = f"{where}: image config is malformed: {exc}"
            raise LayerError(summary) from exc

    @classmethod
    def _from_dict(cls, data: dict[str, Any]) -> ImageConfig:
        cfg: dict[str, Any] = data.get("config") or {}
        rootfs = data.get("rootfs") or {}
        return cls(
            platform=Platform.from_json(data),
            created=data.get("created"),
            author=data.get("author") or "",
            user=cfg.get("User") or "",
            exposed_ports=list(cfg.get("ExposedPorts") or ()),
            env=list(cfg.get("Env") or ()),
            entrypoint=_opt_list(cfg.get("Entrypoint")),
            cmd=_opt_list(cfg.get("Cmd")),
            volumes=list(cfg.get("Volumes") or ()),
            working_dir=cfg.get("WorkingDir") or "",
            labels=dict(cfg.get("Labels") or {}),
            stop_signal=cfg.get("StopSignal") or "",
            args_escaped=bool(cfg.get("ArgsEscaped")),
            healthcheck=_healthcheck(cfg.get("Healthcheck")),
            on_build=_opt_list(cfg.get("OnBuild")),
            shell=_opt_list(cfg.get("Shell")),
            diff_ids=list(rootfs.get("diff_ids") or ()),
            history=[_history(h) for h in data.get("history") or ()],
            extra={k: v for k, v in data.items() if k not in _TOP_FIELDS},
            extra_config={k: v for k, v in cfg.items() if k not in _CONFIG_FIELDS},
        )


_TOP_FIELDS = frozenset(
    [
        "architecture",
        "os",
        "os.version",
        "os.features",
        "variant",
        "created",
        "author",
        "config",
        "rootfs",
        "history",
    ]
)
_CONFIG_FIELDS = frozenset(
    [
        "User",
        "ExposedPorts",
        "Env",
        "Entrypoint",
        "Cmd",
        "Volumes",
        "WorkingDir",
        "Labels",
        "StopSignal",
        "ArgsEscaped",
        "Healthcheck",
        "OnBuild",
        "Shell",
    ]
)


def _opt_list(value: Any) -> list[str] | None:
    return None if value is None else [str(v) for v in value]


def _healthcheck(data: Any) -> Healthcheck | None:
    if not data:
        return None
    return Healthcheck(
        test=list(data.get("Test") or ()),
        interval_ns=int(data.get("Interval") or 0),
        timeout_ns=int(data.get("Timeout") or 0),
        start_period_ns=int(data.get("StartPeriod") or 0),
        start_interval_ns=int(data.get("StartInterval") or 0),
        retries=int(data.get("Retries") or 0),
    )


def _history(data: Any) -> History:
    return History(
        created=data.get("created"),
        created_by=data.get("created_by") or "",
        author=data.get("author") or "",
        comment=data.get("comment") or "",
        empty_layer=bool(data.get("empty_layer")),
    )
