"""The builder store, shared with buildx: same directory, same files, same lock.

::

    $BUILDX_CONFIG or $DOCKER_CONFIG/buildx
        instances/<name>     a builder, JSON
        activity/<name>      RFC 3339 time of last use
        current              {"Key","Name","Global"}: the chosen builder, per docker endpoint or global
        defaults/<hash>      name of the default builder of an endpoint
        .lock                flock(2) held for a transaction
        .buildNodeID         random id of this client
        refs/<builder>/...   local state of builds (buildx's; removed with the builder)

Spec: docker/buildx ``store/store.go``, ``util/confutil/config.go``.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crossdock.builders.dockerconfig import config_dir
from crossdock.builders.model import NodeGroup, validate_name
from crossdock.errors import BuilderError, translate
from crossdock.hashing import sha256
from crossdock.wholefile import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BuilderStore", "Transaction", "store_dir"]


def store_dir() -> str:
    """``$BUILDX_CONFIG``, else ``buildx`` in docker's configuration directory."""
    return os.environ.get("BUILDX_CONFIG") or os.path.join(config_dir(), "buildx")


class BuilderStore:
    """The store; :meth:`transaction` gives access to it, one process at a time."""

    def __init__(self, root: str | None = None) -> None:
        self.root = root or store_dir()

    def exists(self) -> bool:
        """Whether anything was ever stored; reading an absent store needs no lock."""
        return os.path.isdir(os.path.join(self.root, "instances"))

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Hold the lock and work on the store; creates it when absent.

        Raises: BuilderError when the directory cannot be used.
        """

        def refuse(exc: BaseException) -> BuilderError:
            return BuilderError(
                f"cannot use the builder store: {exc}", hint="set BUILDX_CONFIG to another directory"
            )

        with translate({OSError: refuse}):
            for name in ("instances", "defaults", "activity"):
                os.makedirs(os.path.join(self.root, name), mode=0o700, exist_ok=True)
            self._give_to_owner()
            fd = os.open(os.path.join(self.root, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield Transaction(self.root)
            finally:
                os.close(fd)

    def _give_to_owner(self) -> None:
        """Under sudo, what is made in the caller's home stays the caller's, as buildx does it."""
        owner = _sudo_owner(self.root)
        if owner is not None:
            for name in ("", "instances", "defaults", "activity"):
                path = os.path.join(self.root, name)
                if os.stat(path).st_uid != owner[0]:
                    os.chown(path, *owner)


def _sudo_owner(root: str) -> tuple[int, int] | None:
    """Ids of whoever called sudo, when the store lies in a directory of theirs."""
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() != 0 or not (uid.isdigit() and gid.isdigit()):
        return None
    parent = os.path.dirname(os.path.abspath(root))
    while not os.path.isdir(parent) and parent != "/":
        parent = os.path.dirname(parent)
    return (int(uid), int(gid)) if os.stat(parent).st_uid == int(uid) else None


class Transaction:
    """Reads and writes under the lock; names are case-insensitive."""

    def __init__(self, root: str) -> None:
        self._root = root

    def list(self) -> list[NodeGroup]:
        """All stored builders, sorted by name.

        Raises: BuilderError for a file that is not a builder.
        """
        names = os.listdir(os.path.join(self._root, "instances"))
        found = [self.get(name) for name in names if not name.startswith(".")]
        return sorted((g for g in found if g is not None), key=lambda g: g.name)

    def get(self, name: str) -> NodeGroup | None:
        """One builder; ``None`` when it is not stored.

        Raises: BuilderError when its file is malformed, or the name cannot be one.
        """
        path = os.path.join(self._root, "instances", validate_name(name))
        raw = _read(path)
        if raw is None:
            return None
        try:
            data = json.loads(raw)
        except ValueError as exc:
            summary = f"{path}: not valid JSON: {exc}"
            raise BuilderError(summary, hint="remove the file to get rid of the builder") from exc
        group = NodeGroup.from_json(data, path)
        group.last_activity = self._activity(name)
        return group

    def save(self, group: NodeGroup) -> None:
        """Write a builder; atomic. Counts as activity."""
        name = validate_name(group.name)
        self.touch(name)
        raw = json.dumps(group.to_json(), separators=(",", ":"), ensure_ascii=False)
        self._write(os.path.join("instances", name), raw.encode())

    def remove(self, name: str) -> None:
        """Forget a builder and buildx's local state of its builds; an absent one is fine."""
        import shutil

        name = validate_name(name)
        for kind in ("activity", "instances"):
            _unlink(os.path.join(self._root, kind, name))
        refs = os.path.join(self._root, "refs", name)
        if os.path.isdir(refs):
            shutil.rmtree(refs)

    def remove_node_state(self, name: str, node: str) -> None:
        """Forget buildx's local state of one node's builds."""
        import shutil

        refs = os.path.join(self._root, "refs", validate_name(name), validate_name(node))
        if os.path.isdir(refs):
            shutil.rmtree(refs)

    def touch(self, name: str) -> None:
        """Note that a builder was used now."""
        from datetime import UTC, datetime

        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._write(os.path.join("activity", validate_name(name)), stamp.encode(), durable=False)

    def _activity(self, name: str) -> float | None:
        raw = _read(os.path.join(self._root, "activity", validate_name(name)))
        if raw is None:
            return None
        from datetime import datetime

        try:
            return datetime.fromisoformat(raw.decode().strip()).timestamp()
        except ValueError:
            # Cosmetic: a damaged stamp must not make the builder unusable.
            return None

    def current(self, key: str) -> NodeGroup | None:
        """Return the chosen builder of an endpoint; ``None`` when none was chosen or it is gone."""
        chosen = self._chosen()
        mine = chosen.get("Key") == key
        if chosen.get("Name") and (chosen.get("Global") or mine):
            group = self.get(str(chosen["Name"]))
            if group is not None or mine:
                return group
        default = _read(os.path.join(self._root, "defaults", _key_hash(key)))
        if default is None:
            return None
        group = self.get(default.decode())
        if group is not None:
            self.set_current(key, group.name, default=True)
        return group

    def _chosen(self) -> dict[str, object]:
        raw = _read(os.path.join(self._root, "current"))
        if raw is None:
            return {}
        try:
            data = json.loads(raw)
        except ValueError as exc:
            summary = f"{self._root}/current: not valid JSON: {exc}"
            raise BuilderError(summary, hint="choose a builder with `use` after removing the file") from exc
        return data if isinstance(data, dict) else {}

    def set_current(self, key: str, name: str, *, global_: bool = False, default: bool = False) -> None:
        """Choose a builder (``""``: none) for an endpoint, or for all with ``global_``."""
        body = json.dumps({"Key": key, "Name": name, "Global": global_}, separators=(",", ":"))
        self._write("current", body.encode())
        path = os.path.join("defaults", _key_hash(key))
        if default:
            self._write(path, name.encode())
        else:
            _unlink(os.path.join(self._root, path))

    def _write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        path = os.path.join(self._root, name)
        # In the root: buildx refuses to list builders when a foreign file lies in `instances`.
        write_whole(path, data, folder=self._root, durable=durable)
        owner = _sudo_owner(self._root)
        if owner is not None:
            os.chown(path, *owner)


def _key_hash(key: str) -> str:
    return sha256(key.encode()).hexdigest()[:20]


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
