"""Where the store is and how its folders are named; refuses what it does not know.

::

    version             "crossdock store 1": written last, so a folder with it is complete
    metadata.sqlite     blobs, layers, cache records, mounts, images (db.py)
    content/blobs/sha256/HEX    blobs
    content/ingest/LEASE.N      blobs being written
    layers/ID/fs, work          layer directories in overlayfs form; work only while being made
    mounts/ID/fs                cache mounts
    stat/HEX                    stat caches of local contexts
    leases/ID.lock              what living processes use
    locks/                      lock files
    trash/                      removed, being deleted
    ballast                     space given up so that `prune` can work on a full disk
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.engine.store import hooks
from crossdock.engine.store.place import OVERLAYFS, check_local, probe_marks
from crossdock.engine.store.rim import explain, rim
from crossdock.errors import StoreError
from crossdock.linux import filesystem_magic, spread_subdirectories
from crossdock.whiteouts import takes_whiteouts

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BALLAST_BYTES", "LAYOUT_VERSION", "Layout", "default_root", "refill_ballast"]

#: version of the folder layout
LAYOUT_VERSION = 1
#: size of the ballast file: a few write-ahead log growths and lease files
BALLAST_BYTES = 2 << 20

_MAGIC = "crossdock store "
_FOLDERS = ("content/blobs/sha256", "content/ingest", "layers", "mounts", "stat", "leases", "locks", "trash")


class Layout:
    """Paths of a store."""

    __slots__ = (
        "ballast",
        "blobs",
        "database",
        "ingest",
        "layers",
        "leases",
        "locks",
        "mounts",
        "root",
        "stat",
        "trash",
        "unmountable",
        "version",
    )

    def __init__(self, root: Path) -> None:
        self.root = root
        self.version = root / "version"
        self.database = root / "metadata.sqlite"
        self.blobs = root / "content" / "blobs"
        self.ingest = root / "content" / "ingest"
        self.layers = root / "layers"
        self.mounts = root / "mounts"
        self.stat = root / "stat"
        self.leases = root / "leases"
        self.locks = root / "locks"
        self.trash = root / "trash"
        self.ballast = root / "ballast"
        #: there when layers may hold whiteouts that kernels do not understand (``crossdock.whiteouts``), for good
        self.unmountable = root / "unmountable"

    def ensure(self) -> None:
        """Check the version, creating the store in an absent or empty folder.

        Raises: StoreError when the folder holds something else, a newer store, is not ours, or is on a file
        system that cannot hold a store; StoreFull.
        """
        try:
            text = self.version.read_text("ascii")
        except FileNotFoundError:
            self._create()
            return
        except (NotADirectoryError, UnicodeDecodeError) as exc:
            raise _foreign(self.root) from exc
        except OSError as exc:
            with rim("open the store"):
                raise exc
        self._check_version(text)
        self._check_writable()
        self._check_place()

    def _check_place(self) -> None:
        """Refuse file systems of other machines; note one whose layers a kernel cannot mount."""
        with rim("open the store"):
            magic = filesystem_magic(self.root)
            check_local(self.root, magic)
            if magic == OVERLAYFS and not self.unmountable.exists():
                self.unmountable.touch(mode=0o600)

    def _check_version(self, text: str) -> None:
        number = text.removeprefix(_MAGIC).strip()
        if number == text.strip() or not number.isdecimal():
            raise _foreign(self.root)
        version = int(number)
        if version > LAYOUT_VERSION:
            summary = f"{self.root} is a store of layout {version}, this Crossdock knows {LAYOUT_VERSION}"
            raise StoreError(summary, hint="use the newer Crossdock, or set CROSSDOCK_ROOT to another folder")
        if version < LAYOUT_VERSION:
            summary = f"{self.root} is a store of the unsupported layout {version}"
            raise StoreError(summary, hint="remove that folder, or set CROSSDOCK_ROOT to another one")

    def _check_writable(self) -> None:
        if os.access(self.root, os.W_OK | os.X_OK):
            return
        if os.statvfs(self.root).f_flag & os.ST_RDONLY:
            summary = f"the store {self.root} is on a read-only file system"
            raise StoreError(summary, hint="set CROSSDOCK_ROOT to a writable folder")
        owner = self.root.stat().st_uid
        summary = f"the store {self.root} belongs to uid {owner} and cannot be written"
        raise StoreError(summary, hint="set CROSSDOCK_ROOT to a folder of your own")

    def _create(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileNotFoundError as exc:  # such as below /proc: there is nothing to check and repair
            summary = f"cannot create the store: no folder can be made at {self.root}"
            raise StoreError(
                summary, hint="set CROSSDOCK_ROOT (of a server: --root) to a folder that can be made"
            ) from exc
        except OSError as exc:
            raise explain(exc, "create the store") from exc
        self._check_writable()
        with rim("create the store"):
            check_local(self.root, filesystem_magic(self.root))
        with rim("create the store"):
            lock = os.open(self.root / "creation.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self.version.exists():
                    self._fill()
            finally:
                os.close(lock)
        self._check_version(self.version.read_text("ascii"))
        self._check_place()

    def _fill(self) -> None:
        # A creation that died leaves folders of ours but no version file; anything else is not ours.
        ours = {folder.partition("/")[0] for folder in _FOLDERS} | {
            "creation.lock",
            "ballast",
            "version.new",
            "unmountable",
        }
        if set(os.listdir(self.root)) - ours:
            raise _foreign(self.root)
        for folder in _FOLDERS:
            (self.root / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        probe_marks(self.layers)
        if not takes_whiteouts(self.layers):
            self.unmountable.touch(mode=0o600)
        # For a minute ext4 does not use the inodes of removed files again, and looks at each of them whenever it makes
        # a file near by: ten times slower after a prune. Layers far from each other do not suffer from that.
        with contextlib.suppress(OSError):
            spread_subdirectories(self.layers)
        refill_ballast(self.ballast)
        temporary = self.root / "version.new"
        temporary.write_text(f"{_MAGIC}{LAYOUT_VERSION}\n", "ascii")
        hooks.point("store.open:before_version")
        temporary.rename(self.version)


def default_root(uid: int, environ: Mapping[str, str]) -> Path:
    """Return the store's folder for a user: ``$CROSSDOCK_ROOT``, else per user or system-wide.

    ``uid`` is the one outside the worker namespace, where everybody is 0.
    """
    if explicit := environ.get("CROSSDOCK_ROOT"):
        return Path(explicit).absolute()
    if uid == 0:
        return Path("/var/lib/crossdock")
    data = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME") or "/", ".local", "share")
    return Path(data) / "crossdock"


def refill_ballast(path: Path) -> None:
    """Reserve the ballast when it is not there in full. Raises: OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, BALLAST_BYTES)
    except OSError:
        os.ftruncate(fd, 0)
        raise
    finally:
        os.close(fd)


def _foreign(root: Path) -> StoreError:
    summary = f"{root} holds something that is not a Crossdock store"
    return StoreError(summary, hint="set CROSSDOCK_ROOT to an empty or absent folder")
