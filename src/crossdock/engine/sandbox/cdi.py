"""Devices that the machine's administrator described for containers, by the Container Device Interface.

A device is a set of edits of a container: variables, device nodes, mounts, hooks. Descriptions are read when a step first asks
for a device; a file that is malformed describes nothing, and is named where a device is missed.

Spec: tags.cncf.io/container-device-interface ``SPEC.md`` 0.3 to 1.0; moby/buildkit ``solver/llbsolver/cdidevices``.
"""

from __future__ import annotations

import json
import os
import re
import threading
from typing import TYPE_CHECKING, Any

from crossdock.errors import SolveError, UsageError
from crossdock.record import NamedTuple, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from crossdock.llb.ops import CdiDevice

__all__ = [
    "CdiOptions",
    "ContainerEdits",
    "Device",
    "DeviceGrants",
    "DeviceHook",
    "DeviceMount",
    "DeviceRegistry",
]

_DIRECTORIES = ("/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi")
_CLASS = "org.mobyproject.buildkit.device.class"
_AUTO_ALLOW = "org.mobyproject.buildkit.device.autoallow"
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]/[A-Za-z](?:[A-Za-z0-9_-]*[A-Za-z0-9])?\Z")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?\Z")
_TRUE = ("1", "t", "true")
_HOOKS = frozenset(
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
)
_SPEC_KEYS = frozenset(["cdiVersion", "kind", "annotations", "devices", "containerEdits"])
_EDIT_KEYS = frozenset(["env", "deviceNodes", "mounts", "hooks", "additionalGids"])


class CdiOptions(NamedTuple):
    """Where devices are described, and which need no permission: names or kinds."""

    directories: tuple[str, ...] = _DIRECTORIES
    auto_allowed: tuple[str, ...] = ()
    disabled: bool = False


class DeviceMount(NamedTuple):
    """A file, directory or device of the machine shown in a container."""

    source: str
    dest: str
    type: str = "bind"
    options: tuple[str, ...] = ("rbind", "nosuid", "nodev")


class DeviceHook(NamedTuple):
    """A program of the machine that the runtime starts at a point of a container's life."""

    point: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout_s: int = 0


class ContainerEdits(NamedTuple):
    """What devices change of a container."""

    env: tuple[str, ...] = ()
    mounts: tuple[DeviceMount, ...] = ()
    hooks: tuple[DeviceHook, ...] = ()
    groups: tuple[int, ...] = ()

    def plus(self, other: ContainerEdits) -> ContainerEdits:
        """Return these edits and others after them."""
        return ContainerEdits(
            env=tuple(dict.fromkeys((*self.env, *other.env))),
            mounts=tuple(dict.fromkeys((*self.mounts, *other.mounts))),
            hooks=tuple(dict.fromkeys((*self.hooks, *other.hooks))),
            groups=tuple(dict.fromkeys((*self.groups, *other.groups))),
        )


class Device(Record):
    """One device that is described."""

    #: ``vendor/class=name``
    name: str
    edits: ContainerEdits
    annotations: Mapping[str, str] = {}
    auto_allowed: bool = False

    @property
    def kind(self) -> str:
        """Vendor and class."""
        return self.name.partition("=")[0]


class DeviceGrants:
    """Which devices a build may use: entitlements ``device``, ``device=NAME`` and ``device=NAME,alias=OTHER``."""

    def __init__(self, entitlements: Iterable[str]) -> None:
        """Read entitlements; others than ``device`` mean nothing here. Raises: UsageError."""
        self.everything = False
        #: by the name that steps use: the device
        self.aliases: dict[str, str] = {}
        self.names: list[str] = []
        for text in entitlements:
            key, equals, value = text.partition("=")
            if key != "device":
                continue
            if not equals or not value:
                self.everything = True
                continue
            name, *more = value.split(",")
            alias = ""
            for pair in more:
                option, _, wanted = pair.partition("=")
                if option != "alias" or not wanted:
                    summary = f"invalid entitlement {text!r}: unknown option {pair!r}"
                    raise UsageError(summary, hint="write device=NAME or device=NAME,alias=OTHER")
                alias = wanted
            if alias:
                self.aliases[alias] = name
            else:
                self.names.append(name)


class DeviceRegistry:
    """The devices of the machine. Safe from any thread."""

    def __init__(self, options: CdiOptions = CdiOptions()) -> None:  # noqa: B008 -- immutable
        self._options = options
        # Guards _known.
        self._lock = threading.Lock()
        self._known: tuple[tuple[tuple[str, int, int], ...], dict[str, Device], list[str]] | None = None

    def all(self) -> list[Device]:
        """Return what is described now, by name."""
        return [device for _, device in sorted(self._read()[0].items())]

    def select(self, wanted: Sequence[CdiDevice], grants: DeviceGrants) -> list[Device]:
        """Return the devices a step gets: those it asks for and may have; optional ones that are not there left out.

        Raises: SolveError naming what is not described, or not allowed.
        """
        granted = {d.name for name in grants.names for d in self._find(name)}
        found: dict[str, Device] = {}
        forbidden = []
        for one in wanted:
            alias = grants.aliases.get(one.name)
            devices = self._find(alias or one.name)
            if not devices and not one.optional:
                raise self._missing(alias or one.name)
            for device in devices:
                if not (grants.everything or alias or device.auto_allowed or device.name in granted):
                    forbidden.append(device.name)
                found[device.name] = device
        if forbidden:
            what = "device" if len(forbidden) == 1 else "devices"
            summary = f"{what} {', '.join(forbidden)} is requested by the build but not allowed"
            raise SolveError(summary, hint=f"allow it with --allow device={forbidden[0]}")
        return list(found.values())

    def _find(self, name: str) -> list[Device]:
        """Find by ``vendor/class=name``, ``=*``, the first of a kind, or the class that an annotation names."""
        devices = self.all()
        kind, _, rest = name.partition("=")
        found: list[Device] = []
        if _KIND.match(kind):
            of_kind = [device for device in devices if device.kind == kind]
            found = of_kind[:1] if not rest else of_kind
            if rest not in ("", "*"):
                found = [device for device in of_kind if device.name == name]
        return found or [device for device in devices if device.annotations.get(_CLASS) == name]

    def _missing(self, name: str) -> SolveError:
        devices, faults = self._read()
        known = ", ".join(sorted(devices)) or "none"
        hint = f"devices that are described here: {known}"
        if self._options.disabled:
            hint = "devices are switched off by the configuration"
        return SolveError(
            f'required device "{name}" is not registered', detail="\n".join(faults) or None, hint=hint
        )

    def _read(self) -> tuple[dict[str, Device], list[str]]:
        """Read the files that changed since the last time: all of them when any has."""
        with self._lock:
            files = [] if self._options.disabled else _files(self._options.directories)
            state = tuple(files)
            if self._known is None or self._known[0] != state:
                devices, faults = self._load([path for path, _, _ in files])
                self._known = (state, devices, faults)
            return self._known[1], self._known[2]

    def _load(self, paths: Sequence[str]) -> tuple[dict[str, Device], list[str]]:
        devices: dict[str, Device] = {}
        faults: list[str] = []
        for path in paths:  # what comes later wins, as with directories of systemd
            try:
                for device in _parse(_document(path), self._options.auto_allowed):
                    devices[device.name] = device
            except (OSError, UsageError) as exc:
                reason = exc.strerror if isinstance(exc, OSError) else exc.summary
                faults.append(f"{path}: {reason}")
        return devices, faults


def _files(directories: Sequence[str]) -> list[tuple[str, int, int]]:
    found = []
    for directory in directories:
        try:
            names = sorted(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        for name in names:
            path = os.path.join(directory, name)
            if name.endswith((".json", ".yaml", ".yml")) and os.path.isfile(path):
                status = os.stat(path)
                found.append((path, status.st_mtime_ns, status.st_size))
    return found


def _document(path: str) -> object:
    with open(path, "rb") as file:
        data = file.read()
    try:
        return json.loads(data)
    except ValueError as exc:
        if path.endswith(".json"):
            summary = f"it is not JSON: {exc}"
            raise UsageError(summary) from exc
    try:
        import yaml
    except ImportError as exc:
        summary = "reading YAML needs PyYAML: install crossdock[cdi], or write the description as JSON"
        raise UsageError(summary) from exc
    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as exc:
        summary = f"it is not YAML: {exc}"
        raise UsageError(summary) from exc


# --- descriptions ---


def _parse(document: object, auto_allowed: Sequence[str]) -> list[Device]:
    spec = _object(document, "the description", _SPEC_KEYS)
    kind = _text(spec, "kind")
    if not _KIND.match(kind):
        summary = f"its kind {kind!r} is not of the form vendor/class"
        raise UsageError(summary)
    common = _edits(spec.get("containerEdits") or {}, "containerEdits")
    annotations = _strings(spec.get("annotations") or {}, "annotations")
    devices = []
    for number, item in enumerate(_list(spec.get("devices"), "devices")):
        where = f"devices[{number}]"
        given = _object(item, where, frozenset(["name", "annotations", "containerEdits"]))
        name = _text(given, "name")
        if not _NAME.match(name):
            summary = f"{where}: invalid device name {name!r}"
            raise UsageError(summary)
        own = {**annotations, **_strings(given.get("annotations") or {}, f"{where}.annotations")}
        full = f"{kind}={name}"
        allowed = full in auto_allowed or kind in auto_allowed or own.get(_AUTO_ALLOW, "").lower() in _TRUE
        edits = common.plus(_edits(given.get("containerEdits") or {}, where))
        devices.append(Device(name=full, edits=edits, annotations=own, auto_allowed=allowed))
    return devices


def _edits(value: object, where: str) -> ContainerEdits:
    given = _object(value, where, _EDIT_KEYS)
    nodes = [_node(n, where) for n in _list(given.get("deviceNodes"), f"{where}.deviceNodes")]
    mounts = [_mount(m, where) for m in _list(given.get("mounts"), f"{where}.mounts")]
    hooks = [_hook(h, where) for h in _list(given.get("hooks"), f"{where}.hooks")]
    env = tuple(map(str, _list(given.get("env"), f"{where}.env")))
    if any("=" not in variable for variable in env):
        summary = f"{where}: a variable is not of the form NAME=VALUE"
        raise UsageError(summary)
    groups = tuple(_number(g, f"{where}.additionalGids") for g in _list(given.get("additionalGids"), where))
    return ContainerEdits(env, (*nodes, *mounts), tuple(hooks), tuple(group for group in groups if group))


def _node(value: object, where: str) -> DeviceMount:
    """A node is the machine's own, bound: nobody makes nodes in a user namespace. Numbers and owner are therefore its."""
    keys = frozenset(["path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid"])
    given = _object(value, f"{where}.deviceNodes", keys)
    path = _absolute(given, "path", where)
    source = _absolute(given, "hostPath", where) if given.get("hostPath") else path
    readonly = "w" not in str(given.get("permissions") or "rwm")
    return DeviceMount(source, path, "bind", ("bind", "nosuid", "noexec", *(["ro"] if readonly else [])))


def _mount(value: object, where: str) -> DeviceMount:
    given = _object(value, f"{where}.mounts", frozenset(["hostPath", "containerPath", "type", "options"]))
    options = tuple(map(str, _list(given.get("options"), f"{where}.options")))
    kind = str(given.get("type") or "bind")
    source = str(given.get("hostPath") or "")
    if kind in ("bind", ""):
        source = _absolute(given, "hostPath", where)
        if not {"bind", "rbind"} & set(options):
            options = ("rbind", *options)
    return DeviceMount(source, _absolute(given, "containerPath", where), kind, options)


def _hook(value: object, where: str) -> DeviceHook:
    given = _object(value, f"{where}.hooks", frozenset(["hookName", "path", "args", "env", "timeout"]))
    point = _text(given, "hookName")
    if point not in _HOOKS:
        summary = f"{where}: unknown hook {point!r}"
        raise UsageError(summary)
    args, env = (tuple(map(str, _list(given.get(key), f"{where}.{key}"))) for key in ("args", "env"))
    timeout = _number(given.get("timeout") or 0, f"{where}.timeout")
    return DeviceHook(point, _absolute(given, "path", where), args, env, timeout)


def _object(value: object, where: str, known: frozenset[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        summary = f"{where} is not an object"
        raise UsageError(summary)
    unknown = sorted(str(key) for key in value if key not in known)
    if unknown:
        summary = f"{where} has {unknown[0]!r}, which this version does not know"
        raise UsageError(summary)
    return value


def _list(value: object, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        summary = f"{where} is not a list"
        raise UsageError(summary)
    return value


def _strings(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        summary = f"{where} is not an object"
        raise UsageError(summary)
    return {str(key): str(text) for key, text in value.items()}


def _text(given: Mapping[str, Any], key: str) -> str:
    value = given.get(key)
    if not isinstance(value, str) or not value:
        summary = f"it has no {key}"
        raise UsageError(summary)
    return value


def _absolute(given: Mapping[str, Any], key: str, where: str) -> str:
    path = _text(given, key)
    if not path.startswith("/") or "\0" in path:
        summary = f"{where}: {key} {path!r} is not an absolute path"
        raise UsageError(summary)
    return os.path.normpath(path)


def _number(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        summary = f"{where}: {value!r} is not a number"
        raise UsageError(summary)
    return value
