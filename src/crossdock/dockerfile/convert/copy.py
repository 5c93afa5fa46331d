"""COPY and ADD: files from the context, stages, images, here-documents, URLs and Git.

Spec: Dockerfile reference "ADD", "COPY".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from crossdock.dockerfile.contexts import git_source, http_source, named
from crossdock.dockerfile.convert.history import record
from crossdock.dockerfile.convert.names import shown_command, step_name
from crossdock.dockerfile.convert.owner import owner_of
from crossdock.dockerfile.convert.vertex import FileStep, FileVertex, MergeVertex, Ref, SourceVertex
from crossdock.dockerfile.expand import ExpandError, expand
from crossdock.dockerfile.giturl import GitUrlError, parse_git_ref
from crossdock.dockerfile.paths import PathError, clean, normalise, to_slash
from crossdock.dockerfile.source import pinpoint
from crossdock.errors import DigestMismatch, DockerfileError
from crossdock.image.digest import parse_digest
from crossdock.llb.ops import FileActionCopy, FileActionMkFile, OpMetadata, ProgressGroup
from crossdock.record import replace

if TYPE_CHECKING:
    from crossdock.dockerfile.convert.job import Job
    from crossdock.dockerfile.convert.stage import Command, StageState
    from crossdock.dockerfile.giturl import GitRef
    from crossdock.dockerfile.instructions.copy import Add, Copy, FileInstruction

__all__ = ["dispatch_add", "dispatch_copy", "http_filename"]

# Compiled on first use: few files need them, and compiling costs a millisecond or two.
_CLAUSE = r"[ugoa]*(?:[-+=][rwxXstugo]*)+"
_SYMBOLIC = rf"{_CLAUSE}(?:,{_CLAUSE})*\Z"
_WILDCARD = r"(?<!\\)(?:\\\\)*[*?\[]"


def dispatch_copy(job: Job, state: StageState, command: Command) -> None:
    """COPY."""
    instruction = cast("Copy", command.instruction)
    origin: Ref | None
    stage: StageState | None = None
    if command.sources:
        stage = command.sources[0]
        if not stage.dispatched:
            summary = (
                f'cannot copy from stage "{instruction.from_}", it needs to be defined before current stage '
                f'"{state.shown_name}"'
            )
            raise DockerfileError(summary, source=instruction.where)
        origin = stage.output
    else:
        origin = job.context() if instruction.sources else None
    copy = _Copying(job, state, instruction, origin)
    copy.run(parents=instruction.parents, from_stage=stage)


def dispatch_add(job: Job, state: StageState, command: Command) -> None:
    """ADD."""
    instruction = cast("Add", command.instruction)
    _Copying(job, state, instruction, None, add=instruction).run(parents=False, from_stage=None)


def http_filename(url: str) -> str:
    """Return the name a remote file gets: the last segment of the URL's path."""
    from urllib.parse import unquote, urlsplit

    try:
        path = unquote(urlsplit(url).path)
    except ValueError:
        path = ""
    base = path.rstrip("/").rpartition("/")[2]
    return base if base not in ("", ".") else "__unnamed__"


class _Copying:
    """One COPY or ADD while it is converted."""

    def __init__(
        self,
        job: Job,
        state: StageState,
        instruction: FileInstruction,
        origin: Ref | None,
        add: Add | None = None,
    ) -> None:
        self.job = job
        self.state = state
        self.i = instruction
        self.add = add
        self.origin = origin
        self.chown = job.word(state, instruction, instruction.chown)
        self.chmod = job.word(state, instruction, instruction.chmod)
        self.checksum = job.word(state, instruction, add.checksum) if add else ""
        self.sources = [job.word(state, instruction, s) for s in instruction.sources]
        self.destination = job.word(state, instruction, instruction.destination)
        self.steps: list[FileStep] = []
        #: whether the layer stands on its own; a mode needs what is below (as in BuildKit)
        self.linked = instruction.link and not self.chmod

    def run(self, *, parents: bool, from_stage: StageState | None) -> None:
        job, state, i = self.job, self.state, self.i
        template = self._template()
        self._check_checksum()
        name = self._name()
        for source in self.sources:
            self._source(source, template, name, parents=parents, from_stage=from_stage)
        for file in i.files:
            self._inline(file.name, self._body(file.data, expanded=file.expand), template)
        self._finish(name)
        message = ["ADD" if self.add else "COPY"]
        if parents:
            message.append("--parents")
        if self.chown:
            message.append(f"--chown={self.chown}")
        if self.chmod:
            message.append(f"--chmod={self.chmod}")
        message += self.sources
        message += [f"<<{file.name}" for file in i.files]
        message += [self.destination, "# buildkit"]
        record(state, " ".join(message), layer=True, created=job.created)

    def _error(self, message: str, token: str = "", hint: str | None = None) -> DockerfileError:
        return DockerfileError(message, source=pinpoint(self.i.where, token), hint=hint)

    def _template(self) -> FileActionCopy:
        """Return the fields all actions of the instruction share."""
        state = self.state
        try:
            text = "./" if self.destination in ("", ".") else self.destination
            dest = normalise(state.directory, text, state.os, keep_slash=True)
        except PathError as exc:
            message = f"removing drive letter: {exc}"
            raise self._error(message) from None
        mode, mode_str = self._mode()
        base = None if self.linked else state.output
        return FileActionCopy(
            src="/",
            dest=_clean_dest(dest),
            owner=owner_of(self.chown, base) if self.chown else None,
            mode=mode,
            mode_str=mode_str,
            exclude_patterns=self.i.exclude,
            create_dest_path=True,
        )

    def _mode(self) -> tuple[int, str]:
        text = self.chmod
        if not text:
            return -1, ""
        if text[:1].isdigit():
            if all(ch in "01234567" for ch in text) and int(text, 8) <= 0o7777:
                return int(text, 8), ""
            message = f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
            raise self._error(message, f"--chmod={self.i.chmod}")
        if not re.match(_SYMBOLIC, text):
            message = f"invalid chmod parameter: '{text}': invalid syntax"
            raise self._error(message, f"--chmod={self.i.chmod}", hint="write it as 0644 or u+x,go=rX")
        return 0, text

    def _check_checksum(self) -> None:
        if not self.checksum:
            return
        if len(self.sources) != 1 or self.i.files:
            message = "checksum can't be specified for multiple sources"
            raise self._error(message)
        if not _is_http(self.sources[0]) and self._git(self.sources[0]) is None:
            message = "checksum requires HTTP(S) or Git sources"
            raise self._error(message, "--checksum=")

    def _name(self) -> str:
        job, state = self.job, self.state
        self.shown = shown_command(self.i.text, state.env, job.escape)
        return self._step(self.shown)

    def _step(self, shown: str) -> str:
        state = self.state
        return step_name(
            state, shown, platform=state.platform, env=state.env, prefixed=self.job.options.multi_platform
        )

    def _git(self, source: str) -> GitRef | None:
        try:
            git = parse_git_ref(source)
        except GitUrlError as exc:
            raise self._error(str(exc), source) from None
        return None if git is None or git.local_looking else git

    def _source(
        self,
        source: str,
        template: FileActionCopy,
        name: str,
        *,
        parents: bool,
        from_stage: StageState | None,
    ) -> None:
        git = self._git(source)
        if git is not None:
            if self.add is None:
                message = "source can't be a git ref for COPY"
                raise self._error(message, source, hint="use ADD for remote sources")
            self._from_git(self.add, git, template, name)
            if git.scheme == "ssh":  # as BuildKit, which asks the context for it too
                self.state.context_paths.add(clean(f"/{source}"))
        elif _is_http(source):
            if self.add is None:
                message = "source can't be a URL for COPY"
                raise self._error(message, source, hint="use ADD for remote sources")
            self._from_http(self.add, source, template, name)
        else:
            self._from_files(source, template, parents=parents, from_stage=from_stage)

    def _from_git(self, add: Add, git: GitRef, template: FileActionCopy, name: str) -> None:
        keep = add.keep_git_dir
        if git.keep_git_dir is not None:
            if keep is not None and keep != git.keep_git_dir:
                message = "inconsistent keep-git-dir configuration"
                raise self._error(message)
            keep = git.keep_git_dir
        if self.checksum and git.checksum and self.checksum != git.checksum:
            message = f'checksum mismatch "{self.checksum}" != "{git.checksum}"'
            raise self._error(message)
        op = git_source(git, keep_git_dir=keep is True, checksum=self.checksum)
        source = Ref(SourceVertex(op, named(name), source=self.i.where))
        self.steps.append(FileStep(template, source))

    def _from_http(self, add: Add, url: str, template: FileActionCopy, name: str) -> None:
        if self.checksum:
            try:
                parse_digest(self.checksum)
            except DigestMismatch as exc:
                message = f"invalid checksum: {exc.summary}"
                raise self._error(message, "--checksum=", hint=exc.hint) from None
        filename = http_filename(url)
        op = http_source(url, filename=filename, checksum=self.checksum)
        source = Ref(SourceVertex(op, named(name), source=self.i.where))
        action = replace(template, src=clean(f"/{filename}"), attempt_unpack=add.unpack is True)
        self.steps.append(FileStep(action, source))

    def _from_files(
        self,
        source: str,
        template: FileActionCopy,
        *,
        parents: bool,
        from_stage: StageState | None,
    ) -> None:
        state, add = self.state, self.add
        if from_stage is None:
            if add is not None:
                self.origin = self.job.context()
            self._check_ignored(source)
            state.context_paths.add(clean("/" + to_slash(source, state.os)))
        else:
            from_stage.paths.add(clean("/" + to_slash(source, state.os)))
        path, include, required = self._pivot(source) if parents else (source, (), ())
        unpack = add is not None if add is None or add.unpack is None else add.unpack
        action = replace(
            template,
            src=clean(self._absolute(path)),
            follow_symlink=True,
            dir_copy_contents=True,
            attempt_unpack=unpack,
            allow_wildcard=True,
            allow_empty_wildcard=True,
            include_patterns=include,
            required_paths=required,
        )
        self.steps.append(FileStep(action, self.origin))

    def _absolute(self, path: str) -> str:
        try:
            return normalise("/", path, self.state.os, keep_slash=False)
        except PathError as exc:
            message = f"removing drive letter: {exc}"
            raise self._error(message) from None

    def _pivot(self, source: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """Split at ``/./``: what is kept of the path begins there."""
        parent, pivot, rest = source.partition("/./")
        if not pivot:
            parent, rest = "/", source
        pattern = self._absolute(rest)
        required: tuple[str, ...] = ()
        if not re.search(_WILDCARD, parent) and not re.search(_WILDCARD, pattern):
            required = (self._absolute(clean(f"{parent}/{pattern}")),)
        return parent, (pattern.removeprefix("/"),), required

    def _check_ignored(self, source: str) -> None:
        job = self.job
        if job.linter.active and job.ignore is not None and not job.ignore.has_negated:
            from crossdock.dockerfile.lint.checks import check_ignored

            check_ignored(source, job.ignore, self.i, "Add" if self.add else "Copy", job.linter)

    def _body(self, text: str, *, expanded: bool) -> bytes:
        """Return a here-document's bytes; variables are replaced, quotes mean nothing."""
        if expanded:
            try:
                result = expand(text, self.state.env, plain_quotes=True)
            except ExpandError as exc:
                raise self._error(str(exc)) from None
            if result.unmatched:
                self.job.report_unset(self.state, self.i, result.unmatched)
            text = result.text
        return text.encode("utf-8", "surrogateescape")

    def _inline(self, name: str, body: bytes, template: FileActionCopy) -> None:
        path = clean("/" + to_slash(name, self.state.os))
        step = FileStep(FileActionMkFile(path=path, data=body, mode=0o644))
        source = Ref(FileVertex(None, (step,), named("[internal] preparing inline document")))
        self.steps.append(FileStep(replace(template, src=path), source))

    def _finish(self, name: str) -> None:
        state = self.state
        metadata = OpMetadata(ignore_cache=state.ignore_cache, description={"llb.customname": name})
        if not self.linked:
            state.output = Ref(FileVertex(state.output, self.steps, metadata, self.i.where))
            return
        group = f"{self.i.where.file.name}:{self.i.where.start.line}:{state.platform}:{name}"
        weak = replace(metadata, progress_group=ProgressGroup(group, name, weak=True))
        layer = Ref(FileVertex(None, self.steps, weak, self.i.where))
        state.step -= 1
        link_name = self._step(f"LINK {self.shown}") if state.steps else f"LINK {self.shown}"
        if state.output is None:
            state.output = layer
            return
        merged = replace(
            metadata,
            description={"llb.customname": link_name},
            progress_group=ProgressGroup(group, name, weak=False),
        )
        state.output = Ref(MergeVertex((state.output, layer), merged, self.i.where))


def _clean_dest(dest: str) -> str:
    """Clean a destination; a trailing ``/`` or ``/.`` says it is a directory."""
    cleaned = clean(dest)
    if dest.endswith("/") and not cleaned.endswith("/"):
        return cleaned + "/"
    if dest.endswith("/."):
        return (cleaned if cleaned == "/" else cleaned + "/") + "."
    return cleaned


def _is_http(source: str) -> bool:
    return source.startswith(("http://", "https://"))
