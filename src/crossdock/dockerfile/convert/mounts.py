"""The mounts of a RUN as LLB mounts.

Spec: Dockerfile reference "RUN --mount".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from crossdock.dockerfile.contexts import named
from crossdock.dockerfile.convert.vertex import ExecMount, FileStep, FileVertex, Ref
from crossdock.dockerfile.instructions.mount import MountError, MountSpec, parse_mount
from crossdock.dockerfile.paths import clean
from crossdock.dockerfile.source import pinpoint
from crossdock.errors import DockerfileError
from crossdock.llb.ops import (
    CacheOpt,
    CacheSharing,
    ChownOpt,
    FileActionMkDir,
    Mount,
    MountType,
    SecretEnv,
    SecretOpt,
    SshOpt,
)

if TYPE_CHECKING:
    from crossdock.dockerfile.convert.job import Job
    from crossdock.dockerfile.convert.stage import Command, StageState
    from crossdock.dockerfile.instructions.run import Run

__all__ = ["Mounts"]

_SHARING = {
    "": CacheSharing.SHARED,
    "shared": CacheSharing.SHARED,
    "private": CacheSharing.PRIVATE,
    "locked": CacheSharing.LOCKED,
}


class Mounts:
    """All mounts of one RUN.

    Raises: DockerfileError.
    """

    def __init__(self, job: Job, state: StageState, command: Command) -> None:
        self._job = job
        self._state = state
        self._run = cast("Run", command.instruction)
        #: bind, cache and tmpfs
        self.plain: list[ExecMount] = []
        self._secrets: list[Mount] = []
        self._ssh: list[Mount] = []
        self.secret_env: list[SecretEnv] = []
        #: socket of the first ssh mount
        self.ssh_socket = ""
        #: variables that come from secrets, hidden in names
        self.masked: dict[str, str] = {}
        for text, source in zip(self._run.mounts, command.sources, strict=True):
            spec = self._parse(text)
            match spec.type:
                case "secret":
                    self._add_secret(spec)
                case "ssh":
                    self._add_ssh(spec)
                case _:
                    self._add(spec, source)

    @property
    def without_input(self) -> tuple[Mount, ...]:
        """Secret mounts, then ssh mounts."""
        return (*self._secrets, *self._ssh)

    def _error(self, message: str, text: str = "") -> DockerfileError:
        return DockerfileError(message, source=pinpoint(self._run.where, text))

    def _parse(self, text: str) -> MountSpec:
        try:
            return parse_mount(text, lambda word: self._job.word(self._state, self._run, word))
        except MountError as exc:
            raise self._error(str(exc), text) from None

    def _add_secret(self, spec: MountSpec) -> None:
        secret_id = spec.source or spec.id or spec.target.rstrip("/").rpartition("/")[2]
        self._state.capture.secrets.setdefault(secret_id, (spec.required, self._run.where))
        if spec.env is not None:
            self.masked[spec.env] = "****"
            self.secret_env.append(SecretEnv(id=secret_id, name=spec.env, optional=not spec.required))
        target = spec.target
        if not target:
            if spec.env is not None:
                return
            target = "/run/secrets/" + (secret_id.rstrip("/").rpartition("/")[2] or "/")
        self._secrets.append(
            Mount(
                dest=target,
                output=0,
                mount_type=MountType.SECRET,
                secret_opt=SecretOpt(
                    id=secret_id,
                    uid=spec.uid or 0,
                    gid=spec.gid or 0,
                    mode=0o400 if spec.mode is None else spec.mode,
                    optional=not spec.required,
                ),
            )
        )

    def _add_ssh(self, spec: MountSpec) -> None:
        self._state.capture.ssh.setdefault(spec.id or "default", (spec.required, self._run.where))
        target = spec.target or f"/run/buildkit/ssh_agent.{len(self._ssh)}"
        if not self._ssh:
            self.ssh_socket = target
        self._ssh.append(
            Mount(
                dest=target,
                output=0,
                mount_type=MountType.SSH,
                ssh_opt=SshOpt(
                    id=spec.id,
                    uid=spec.uid or 0,
                    gid=spec.gid or 0,
                    mode=0o600 if spec.mode is None else spec.mode,
                    optional=not spec.required,
                ),
            )
        )

    def _add(self, spec: MountSpec, source: StageState) -> None:
        from_ = spec.from_ or ("scratch" if spec.type == "cache" else "")
        origin: Ref | None
        if spec.type == "tmpfs":
            origin = None
        elif from_:
            if not source.dispatched:
                message = (
                    f'cannot mount from stage "{from_}" to "{spec.target}", stage needs to be defined before '
                    "current command"
                )
                raise self._error(message, f"from={from_}")
            origin = source.output
        else:
            origin = self._job.context()
        path = clean(f"/{spec.source}")
        selector = path if path != "/" else ""
        if not selector and not (spec.uid is spec.gid is spec.mode is None):
            origin, selector = self._owned(origin, spec), "/cache"
        self.plain.append(
            ExecMount(
                self._target(spec),
                origin,
                selector,
                readonly=spec.readonly,
                no_output=spec.type == "bind" and not spec.readonly,
                cache=self._cache(spec),
                tmpfs_size=spec.size if spec.type == "tmpfs" else None,
            )
        )
        (source.paths if from_ else self._state.context_paths).add(path)

    def _cache(self, spec: MountSpec) -> CacheOpt | None:
        if spec.type != "cache":
            return None
        cache_id = spec.id or clean(spec.target)
        namespace = self._job.options.cache_namespace or self._job.build_args.get(
            "BUILDKIT_CACHE_MOUNT_NS", ""
        )
        return CacheOpt(id=f"{namespace}/{cache_id}", sharing=_SHARING[spec.sharing])

    def _target(self, spec: MountSpec) -> str:
        target = spec.target
        if not clean(target).startswith("/"):
            target = clean(f"/{self._state.directory}/{target}")
        if target == "/":
            message = f'invalid mount target "{target}"'
            raise self._error(message, spec.target)
        return target

    @staticmethod
    def _owned(origin: Ref | None, spec: MountSpec) -> Ref:
        """Return a directory with the wanted owner and mode to start the cache from."""
        action = FileActionMkDir(
            path="/cache",
            mode=(0o755 if spec.mode is None else spec.mode) & 0o777,
            owner=ChownOpt(spec.uid or 0, spec.gid or 0),
        )
        metadata = named("[internal] setting cache mount permissions")
        return Ref(FileVertex(origin, (FileStep(action),), metadata))
