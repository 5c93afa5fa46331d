"""What a build reads from this machine: the Dockerfile, local contexts, secrets; and the frontend's attributes.

Spec: docker/buildx ``build/opt.go`` (loadInputs); moby/buildkit ``frontend/dockerui`` for the attributes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from crossdock.builders.parse import is_remote_context
from crossdock.errors import ContextError, InternalError, NotSupported, UsageError, translate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from crossdock.builders.request import BuildRequest, SecretSpec
    from crossdock.secret import Secret

__all__ = ["STDIN", "Inputs", "LocalFiles", "check_secrets", "gather", "secret_reader", "ssh_sockets"]

#: name of the local directory that holds an archive from standard input
STDIN = "stdin"
_MAX_SECRET_BYTES = 500 * 1024
_MAX_DOCKERFILE_BYTES = 2 << 20


class Inputs(NamedTuple):
    """What was gathered."""

    #: ``None`` when it must be fetched
    dockerfile: bytes | None
    #: as shown in errors and progress, relative to its directory
    name: str
    #: local directories by the name that the graph uses
    directories: Mapping[str, Path]
    #: BuildKit's frontend attributes
    attrs: Mapping[str, str]


def gather(request: BuildRequest, empty: Path | None) -> Inputs:
    """Find everything a build reads; ``empty`` is an empty directory, given when context or Dockerfile have none.

    Raises: ContextError, UsageError, NotSupported.
    """
    directories: dict[str, Path] = {}
    remote = request.context == "-" or is_remote_context(request.context)
    if request.context == "-":
        directories[STDIN] = _given(empty)
        _copy_stdin(directories[STDIN] / "context")
    if not remote:
        directories["context"] = _directory(request.context) if request.context else _given(empty)
    dockerfile: bytes | None
    if request.dockerfile_text is not None:
        dockerfile, name = request.dockerfile_text, "Dockerfile"
        directories["dockerfile"] = _given(empty)
    elif _is_url(request.dockerfile) or (remote and not os.path.isabs(request.dockerfile)):
        dockerfile, name = None, request.dockerfile or "Dockerfile"
    else:
        path = _dockerfile_path(request, directories.get("context"))
        dockerfile, name = _read_dockerfile(path), path.name
        directories["dockerfile"] = path.parent
    attrs = _attributes(request)
    for key, value in request.named_contexts.items():
        attrs[f"context:{key}"] = _named(key, value, directories)
    return Inputs(dockerfile, name, directories, attrs)


def _copy_stdin(path: Path) -> None:
    """Put an archive from standard input where the engine can read it."""
    import shutil

    def refuse(exc: BaseException) -> ContextError:
        return ContextError(f"cannot read the context from standard input: {exc}")

    with translate({OSError: refuse}), open(os.dup(0), "rb") as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _given(empty: Path | None) -> Path:
    if empty is None:
        summary = "no empty directory was made for this build"
        raise InternalError(summary)
    return empty


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        summary = f"unable to prepare context: path {text!r} not found"
        raise ContextError(summary)
    if not path.is_dir():
        summary = f"unable to prepare context: {text!r} is not a directory"
        raise ContextError(summary, hint="give the directory, and the Dockerfile with -f")
    return path.absolute()


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _dockerfile_path(request: BuildRequest, context: Path | None) -> Path:
    if request.dockerfile or context is None:
        return Path(request.dockerfile).absolute()
    upper, lower = context / "Dockerfile", context / "dockerfile"
    return lower if not upper.exists() and lower.exists() else upper


def _read_dockerfile(path: Path) -> bytes:
    def refuse(exc: BaseException) -> ContextError:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        text = f"failed to read dockerfile: open {path}: {reason}"
        return ContextError(text, hint="name the Dockerfile with -f, or give another directory")

    with translate({OSError: refuse}), path.open("rb") as file:
        data = file.read(_MAX_DOCKERFILE_BYTES + 1)
    if len(data) > _MAX_DOCKERFILE_BYTES:
        summary = f"{path} is larger than 2 MiB: not a Dockerfile"
        raise ContextError(summary)
    return data


def _named(name: str, value: str, directories: dict[str, Path]) -> str:
    if value.startswith("docker-image://"):
        return value
    if is_remote_context(value):
        return value
    if value.startswith("oci-layout://"):
        summary = f"--build-context {name}={value}: the embedded builder cannot read OCI layouts yet"
        raise NotSupported(summary, hint="use a directory or docker-image://")
    if value.startswith(("target:", "input:", "local:")):
        summary = f"--build-context {name}={value}: {value.partition(':')[0]} exists in bake files only"
        raise UsageError(summary)
    local = f"context:{name}"
    directories[local] = _directory(value)
    return f"local:{local}"


def _attributes(request: BuildRequest) -> dict[str, str]:
    attrs = {f"build-arg:{k}": v for k, v in request.build_args.items()}
    attrs.update({f"label:{k}": v for k, v in request.labels.items()})
    simple = {
        "target": request.target,
        "platform": ",".join(map(str, request.platforms)),
        "add-hosts": ",".join(request.add_hosts),
        "shm-size": str(request.shm_size) if request.shm_size else "",
        "ulimit": ",".join(request.ulimits),
        "cgroup-parent": request.cgroup_parent,
        "image-resolve-mode": "pull" if request.pull else "",
        "force-network-mode": request.network if request.network in ("host", "none") else "",
    }
    attrs.update({k: v for k, v in simple.items() if v})
    if request.no_cache:
        attrs["no-cache"] = ""
    elif request.no_cache_filter:
        attrs["no-cache"] = ",".join(request.no_cache_filter)
    # BuildKit spells the attributes of --resource without dashes, and memory-swap shorter.
    attrs.update(
        {k.replace("memory-swap", "memswap").replace("-", ""): v for k, v in request.resources.items()}
    )
    return attrs


class LocalFiles:
    """Reads single files of local directories; never leaves them."""

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self._directories = directories

    def read_file(self, path: str, *, local: str = "context") -> bytes | None:
        """Return a file; ``None`` when there is none, or when it is not a regular file of the directory.

        Raises: ContextError when it cannot be read.
        """
        root = self._directories.get(local)
        if root is None:
            return None

        def refuse(exc: BaseException) -> ContextError:
            return ContextError(f"cannot read {path} of the context {root}: {exc}")

        with translate({OSError: refuse}):
            try:
                # os.path.realpath: pathlib's resolve() turns a loop of links into a RuntimeError.
                found = Path(os.path.realpath(root / path.lstrip("/"), strict=True))
                if not found.is_relative_to(os.path.realpath(root)) or not found.is_file():
                    return None
                return found.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None


def secret_reader(specs: tuple[SecretSpec, ...]) -> Callable[[str], Secret | None]:
    """Return a function that gives a secret by id; sources are read when asked for, and ids not given are ``None``.

    Raises (the function): UsageError naming the file or variable that is not there.
    """
    by_id = {spec.id: spec for spec in specs}

    def read(name: str) -> Secret | None:
        spec = by_id.get(name)
        return None if spec is None else _read_secret(spec)

    return read


def _read_secret(spec: SecretSpec) -> Secret:
    from crossdock.secret import Secret

    if spec.value is not None:
        return spec.value
    if spec.env:
        if spec.env not in os.environ:
            summary = f"secret {spec.id!r}: the environment variable {spec.env} is not set"
            raise UsageError(summary)
        return Secret(os.environ[spec.env])
    try:
        with open(spec.path, "rb") as file:
            data = file.read(_MAX_SECRET_BYTES + 1)
    except OSError as exc:
        summary = f"secret {spec.id!r}: cannot read {spec.path}: {exc.strerror}"
        raise UsageError(summary) from exc
    if len(data) > _MAX_SECRET_BYTES:
        summary = f"secret {spec.id!r}: {spec.path} is larger than 500 KiB"
        raise UsageError(summary)
    return Secret(data)


def check_secrets(specs: tuple[SecretSpec, ...]) -> None:
    """Refuse secrets whose source does not exist, before anything is built.

    Raises: UsageError.
    """
    for spec in specs:
        if (spec.env and spec.value is None and spec.env not in os.environ) or (
            spec.path and spec.value is None and not os.path.exists(spec.path)
        ):
            _read_secret(spec)


def ssh_sockets(specs: tuple[str, ...]) -> dict[str, Path]:
    """Read ``--ssh`` values: ``default`` or ``id[=socket]``.

    Raises: UsageError when there is no agent; NotSupported for key files.
    """
    out: dict[str, Path] = {}
    for spec in specs:
        name, _, value = spec.partition("=")
        path = value or os.environ.get("SSH_AUTH_SOCK", "")
        if not path:
            summary = f"--ssh {spec}: SSH_AUTH_SOCK is not set"
            raise UsageError(summary, hint="start an agent with ssh-agent, or give --ssh default=SOCKET")
        if not Path(path).is_socket():
            summary = f"--ssh {spec}: {path} is not a socket"
            if Path(path.partition(",")[0]).is_file():
                msg = f"--ssh {spec}: key files are not supported by the embedded builder yet"
                raise NotSupported(
                    msg,
                    hint="add the key to an agent with ssh-add, and use --ssh default",
                )
            raise UsageError(summary)
        out[name or "default"] = Path(path)
    return out
