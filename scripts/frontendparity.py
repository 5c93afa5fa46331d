"""Compare the frontend with that of a running BuildKit: same graph, same digests, same step names.

    python scripts/frontendparity.py --addr unix:///run/buildkit/buildkitd.sock --registry 127.0.0.1:5000 DIRECTORY

Every ``Dockerfile`` below the directory is converted by both (BuildKit's ``frontend.convertllb`` request, v0.27 or
later, asked through ``buildctl``). Base images come from the registry, over plain HTTP, which BuildKit must use as
its mirror for the registries the files name. An ``options.json`` beside a file is read as in ``tests/golden``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossdock.dockerfile import convert, parse
from crossdock.dockerfile.attrs import options_from_attrs
from crossdock.errors import CrossdockError, NotFoundError
from crossdock.image.reference import parse_reference
from crossdock.llb.codec import marshal

if TYPE_CHECKING:
    from crossdock.image.platform import Platform

_ACCEPT = ", ".join(
    f"application/vnd.{kind}"
    for kind in (
        "oci.image.index.v1+json",
        "oci.image.manifest.v1+json",
        "docker.distribution.manifest.list.v2+json",
        "docker.distribution.manifest.v2+json",
    )
)


@dataclass(frozen=True)
class Image:
    """A resolved image."""

    ref: str
    digest: str
    config: bytes


class Registry:
    """Resolves images in one registry, without Crossdock's own client."""

    def __init__(self, host: str) -> None:
        self.host = host

    def _get(self, path: str) -> bytes:
        request = urllib.request.Request(f"http://{self.host}/v2/{path}", headers={"Accept": _ACCEPT})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                data: bytes = answer.read()
                return data
        except OSError as exc:
            summary = f"{path}: {exc}"
            raise NotFoundError(summary, host=self.host) from exc

    def resolve_image(self, ref: str, *, platform: Platform, mode: str, log_name: str) -> Image:
        """Resolve by tag or digest."""
        del mode, log_name
        parsed = parse_reference(ref)
        body = self._get(f"{parsed.path}/manifests/{parsed.object}")
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        manifest = json.loads(body)
        for entry in manifest.get("manifests", ()):
            if entry["platform"]["architecture"] == platform.architecture:
                manifest = json.loads(self._get(f"{parsed.path}/manifests/{entry['digest']}"))
                break
        return Image(ref, digest, self._get(f"{parsed.path}/blobs/{manifest['config']['digest']}"))

    def resolve_oci_layout(self, ref: str, *, store: str, platform: Platform, log_name: str) -> Image:
        """Refuse: nobody serves layouts here."""
        del platform, log_name
        summary = f"{ref}: no layout {store}"
        raise NotFoundError(summary, host=store)


class Directory:
    """Context files from a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_file(self, path: str, *, local: str = "context") -> bytes | None:
        """Read a file of the main context or beside the Dockerfile."""
        file = self.path / path
        return file.read_bytes() if local in ("context", "dockerfile") and file.is_file() else None


def attributes(options: dict[str, Any]) -> dict[str, str]:
    """Return the frontend attributes of a golden case's options."""
    out = {f"build-arg:{k}": v for k, v in options.get("build_args", {}).items()}
    out |= {f"label:{k}": v for k, v in options.get("labels", {}).items()}
    out |= {f"context:{k}": v for k, v in options.get("contexts", {}).items()}
    if "target" in options:
        out["target"] = options["target"]
    if "no_cache" in options:
        out["no-cache"] = ",".join(options["no_cache"])
    return out


def theirs(
    buildctl: str, addr: str, folder: Path, attrs: dict[str, str]
) -> tuple[dict[str, Any] | None, str]:
    """Return BuildKit's definition, or ``None`` and its error."""
    command = [buildctl, "--addr", addr, "build", "--frontend", "dockerfile.v0", "--progress", "plain"]
    names = ["context", "dockerfile", *(t[6:] for t in attrs.values() if t.startswith("local:"))]
    for name in names:
        command += ["--local", f"{name}={folder}"]
    for key, text in {**attrs, "requestid": "frontend.convertllb"}.items():
        command += ["--opt", f"{key}={text}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        return None, (errors or [done.stderr])[-1].removeprefix("error: failed to solve: ")
    start = done.stdout.index("{")
    value: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout[start:])[0]
    return value, ""


def session_of(definition: dict[str, Any]) -> str:
    """Return the session id in a definition: it is part of the digests."""
    for op in definition["def"].values():
        session: str = (op.get("source") or {}).get("attrs", {}).get("local.session", "")
        if session:
            return session
    return ""


def compare(args: argparse.Namespace, file: Path) -> tuple[str, str]:
    """Return the verdict on one file, and details."""
    side = file.parent / "options.json"
    options = json.loads(side.read_text()) if side.is_file() else {}
    attrs = attributes(options)
    # The line would make BuildKit fetch a frontend image.
    lines = [
        line for line in file.read_bytes().split(b"\n") if b"syntax=docker/" not in line.replace(b" ", b"")
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "Dockerfile").write_bytes(b"\n".join(lines))
        if "dockerignore" in options:
            (folder / ".dockerignore").write_text(options["dockerignore"])
        reference, error = theirs(args.buildctl, args.addr, folder, attrs)
        session = session_of(reference) if reference else ""
        try:
            (result, *_) = convert(
                parse(b"\n".join(lines)),
                options_from_attrs(attrs, session=session),
                images=Registry(args.registry),
                context=Directory(folder),
                warn=lambda _: None,
            )
        except CrossdockError as exc:
            return ("both refuse" if reference is None else "WE REFUSE"), f"ours: {exc} theirs: {error}"
    if reference is None:
        return "THEY REFUSE", error
    ours = marshal(result.output)
    digests = {"sha256:" + hashlib.sha256(op).hexdigest() for op in ours.ops}
    if digests != set(reference["def"]):
        missing = set(reference["def"]) - digests
        names = [
            reference["metadata"].get(d, {}).get("description", {}).get("llb.customname") for d in missing
        ]
        return "DIFFERENT", f"steps only they have: {names}"
    key = "llb.customname"
    wanted = {d: m.get("description", {}).get(key, "") for d, m in reference["metadata"].items()}
    given = {str(d): m.description.get(key, "") for d, m in ours.metadata.items()}
    return (
        ("equal", "") if wanted == given else ("OTHER NAMES", str(set(wanted.values()) ^ set(given.values())))
    )


def main() -> int:
    """Compare every file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--addr", required=True, help="address of buildkitd")
    parser.add_argument("--buildctl", default="buildctl")
    parser.add_argument("--registry", required=True, help="HOST:PORT of a plain HTTP registry")
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    verdicts: Counter[str] = Counter()
    for file in sorted(p for p in args.directory.rglob("Dockerfile") if p.is_file()):
        verdict, details = compare(args, file)
        verdicts[verdict] += 1
        if verdict != "equal":
            print(f"{file.parent.relative_to(args.directory)}: {verdict} {details}", flush=True)
    print(dict(verdicts))
    return 1 if any(v.isupper() for v in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
