"""Sources of definitions and what is known of them: blobs, nested builds, metadata of images, commits and files."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from crossdock.buildkit.proto import gateway_pb2, ops_pb2, policy_pb2
from crossdock.llb.codec import encode_definition, marshal
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import (
    BuildOp,
    DiffOp,
    ExecMeta,
    ExecOp,
    FileAction,
    FileActionMkDir,
    FileActionMkFile,
    FileActionRm,
    FileOp,
    MergeOp,
    Mount,
    SourceOp,
)
from integration.server.plain import Build, Client, code, copied, definition, made_file, text
from support.servers import skopeo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("crun", "userns", "overlay", "base")

NESTED = "buildkit.llb.definition"


def file_of(name: str, data: bytes) -> Output:
    action = FileAction(action=FileActionMkFile(path=f"/{name}", data=data), input=-1, output=0)
    return Output(Node(FileOp((action,))))


def nested(output: Output, *, file: str = NESTED, **more: Any) -> Output:
    """A build of a definition that is a file of another result."""
    data = encode_definition(marshal(output))
    attrs = {"llbbuild.filename": file} if file != NESTED else {}
    op = BuildOp(builder=-1, inputs={NESTED: 0}, attrs=attrs, **more)
    return Output(Node(op, [file_of(file, data)]))


def read(build: Build, output: Output, path: str = "/file") -> bytes:
    request = gateway_pb2.ReadFileRequest(Ref=build.solved(output), FilePath=path)
    return bytes(build.call("ReadFile", request).Data)


def failed(build: Build, output: Output) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        read(build, output)
    return caught.value


class TestNestedBuilds:
    def test_a_definition_that_was_built_is_built(self, build: Build) -> None:
        assert read(build, nested(made_file(b"inner"))) == b"inner"
        assert read(build, copied(nested(made_file(b"deep"), file="other"))) == b"deep"

    def test_they_nest(self, build: Build) -> None:
        assert read(build, nested(copied(nested(nested(made_file(b"3")))))) == b"3"

    def test_without_end_they_are_refused(self, build: Build) -> None:
        output = made_file()
        for _ in range(20):
            output = nested(output)
        assert "nested more than" in text(failed(build, output))

    @pytest.mark.parametrize(
        ("output", "wanted"),
        [
            (Output(Node(BuildOp(builder=-1, inputs={NESTED: 0}), [file_of(NESTED, b"\xff\xff")])), "malformed"),
            (Output(Node(BuildOp(builder=-1, inputs={NESTED: 0}), [file_of("x", b"")])), "no such file"),
            (Output(Node(BuildOp(builder=-1, inputs={NESTED: 5}), [made_file()])), "no llb definition input"),
            (Output(Node(BuildOp(builder=-1), [made_file()])), "no llb definition input"),
            (Output(Node(BuildOp(builder=0, inputs={NESTED: 0}), [made_file()])), "only LLB builder"),
        ],
    )  # fmt: skip
    def test_nonsense_is_named(self, build: Build, output: Output, wanted: str) -> None:
        assert wanted in text(failed(build, output))

    def test_rules_for_sources_hold_inside(self, client: Client, base: BaseImages) -> None:
        selector = policy_pb2.Selector(identifier="docker-image://*")
        rules = policy_pb2.Policy(rules=[policy_pb2.Rule(action=policy_pb2.DENY, selector=selector)])
        inner = copied(Output(Node(SourceOp(f"docker-image://{base.index}"))))
        error = client.failure(Definition=definition(nested(inner)), SourcePolicy=rules)
        assert "denied by policy" in text(error)


class TestBlobs:
    def blob(self, base: BaseImages, **attrs: str) -> Output:
        name = base.index.rpartition(":")[0]
        digest = next(iter(base.platforms.values()))
        manifest = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}@{digest}").stdout
        self.config = json.loads(manifest)["config"]["digest"]
        return Output(
            Node(
                SourceOp(
                    f"docker-image+blob://{name}@{self.config}",
                    {k.replace("_", "."): v for k, v in attrs.items()},
                )
            )
        )

    def test_one_is_a_file_named_after_its_digest(self, build: Build, base: BaseImages) -> None:
        source = self.blob(base)
        data = read(build, source, "/" + self.config.partition(":")[2])
        assert "sha256:" + hashlib.sha256(data).hexdigest() == self.config

    def test_name_and_mode_are_as_asked(self, build: Build, base: BaseImages) -> None:
        ref = build.solved(self.blob(base, http_filename="../config.json", http_perm="0640"))
        listed = build.call("ReadDir", gateway_pb2.ReadDirRequest(Ref=ref, DirPath="/"))
        assert [(e.path, e.mode) for e in listed.entries] == [("config.json", 0o640)]

    @pytest.mark.parametrize(
        ("identifier", "attrs", "wanted"),
        [
            ("docker-image+blob://localhost/x:1", {}, "no digest"),
            ("docker-image+blob://localhost/x@sha256:" + "0" * 64, {"http.perm": "x"}, "http.perm"),
            ("docker-image+blob://localhost/x@sha256:" + "0" * 64, {"oci.store": "x"}, "unknown attribute"),
            ("oci-layout+blob://x@sha256:" + "0" * 64, {}, "requires store id"),
        ],
    )
    def test_nonsense_is_named(
        self, build: Build, identifier: str, attrs: dict[str, str], wanted: str
    ) -> None:
        assert wanted in text(failed(build, Output(Node(SourceOp(identifier, attrs)))))

    def test_one_that_is_not_there_is_named(self, build: Build, base: BaseImages) -> None:
        name = base.index.rpartition(":")[0]
        gone = Output(Node(SourceOp(f"docker-image+blob://{name}@sha256:{'0' * 64}")))
        assert "has no blob" in text(failed(build, gone))


def changed(base: Output | None, *actions: Any) -> Output:
    """A file system after actions, one after the other."""
    inputs = [] if base is None else [base]
    made = []
    for number, action in enumerate(actions):
        source = len(inputs) + number - 1
        last = number == len(actions) - 1
        made.append(FileAction(action=action, input=source, output=0 if last else -1))
    return Output(Node(FileOp(tuple(made)), inputs))


def merged(*outputs: Output) -> Output:
    return Output(Node(MergeOp(tuple(range(len(outputs)))), list(outputs)))


def difference(lower: Output, upper: Output) -> Output:
    return Output(Node(DiffOp(lower=0, upper=1), [lower, upper]))


def directory(path: str) -> FileActionMkDir:
    return FileActionMkDir(path=path, make_parents=True)


def a_file(path: str) -> FileActionMkFile:
    return FileActionMkFile(path=path, data=path.encode())


class TestMergeAndDiff:
    """Results were compared with those of BuildKit for fifty graphs; these two differed once."""

    def entries(self, build: Build, output: Output, path: str) -> list[str]:
        request = gateway_pb2.ReadDirRequest(Ref=build.solved(output), DirPath=path)
        return [entry.path for entry in build.call("ReadDir", request).entries]

    def test_a_directory_made_anew_hides_only_what_it_replaced(self, build: Build) -> None:
        before = changed(None, directory("/d"), a_file("/d/old"))
        after = changed(before, FileActionRm(path="/d"), directory("/d"), a_file("/d/new"))
        elsewhere = changed(None, directory("/d"), a_file("/d/other"), a_file("/d/old"))
        assert self.entries(build, merged(elsewhere, difference(before, after)), "/d") == ["new", "other"]

    def test_what_is_deleted_where_it_is_not_leaves_no_trace(self, build: Build, base: BaseImages) -> None:
        before = changed(None, directory("/keep"), a_file("/keep/k"))
        after = changed(before, FileActionRm(path="/keep/k"))
        image = Output(Node(SourceOp(f"docker-image://{base.index}")))
        output = merged(image, difference(before, after))
        assert self.entries(build, output, "/keep") == []
        meta = ExecMeta(args=("/bin/sh", "-ec", "ls -A /keep > /seen; rm -r /keep"), cwd="/")
        step = Output(Node(ExecOp(meta=meta, mounts=(Mount(dest="/", input=0, output=0),)), [output]))
        assert read(build, step, "/seen") == b""
        assert "keep" not in self.entries(build, step, "/")


@pytest.mark.parametrize(
    ("identifier", "attrs"),
    [
        ("git://example.invalid/x", {"git.bundle": "docker-image+blob://x"}),
        ("git://example.invalid/x", {"git.sig.pubkey": "k"}),
        ("http://example.invalid/x", {"http.sig.pubkey": "k"}),
        ("npm://x", {}),
    ],
)
def test_what_is_not_done_here_is_unimplemented(build: Build, identifier: str, attrs: dict[str, str]) -> None:
    error = failed(build, Output(Node(SourceOp(identifier, attrs))))
    assert code(error) == "UNIMPLEMENTED"
    assert len(text(error)) > 20


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server and the folder that it shows."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def meta(build: Build, identifier: str, attrs: dict[str, str] | None = None, **fields: Any) -> Any:
    source = ops_pb2.SourceOp(identifier=identifier, attrs=attrs or {})
    return build.call("ResolveSourceMeta", gateway_pb2.ResolveSourceMetaRequest(Source=source, **fields))


def git(folder: Path, *args: str) -> str:
    who = {f"GIT_{w}_{k}": "a@example.com" for w in ("AUTHOR", "COMMITTER") for k in ("NAME", "EMAIL")}
    env = {**os.environ, **who, "GIT_CONFIG_GLOBAL": "/dev/null"}
    done = subprocess.run(["git", *args], cwd=folder, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


class TestMetadata:
    def test_of_a_file_of_the_web(self, build: Build, website: tuple[str, Path]) -> None:
        url, folder = website
        (folder / "file.txt").write_bytes(b"content")
        os.utime(folder / "file.txt", (1_000_000_000, 1_000_000_000))
        found = meta(build, f"{url}/file.txt").HTTP
        assert found.Checksum == "sha256:" + hashlib.sha256(b"content").hexdigest()
        assert (found.Filename, found.LastModified.seconds) == ("file.txt", 1_000_000_000)

    @pytest.mark.parametrize(("number", "name"), [(0, "sha256"), (1, "sha384"), (2, "sha512")])
    def test_a_checksum_with_a_suffix(
        self, build: Build, website: tuple[str, Path], number: int, name: str
    ) -> None:
        url, folder = website
        (folder / "f").write_bytes(b"content")
        wanted = gateway_pb2.ChecksumRequest(Algo=number, Suffix=b"+more")  # type: ignore[arg-type]
        found = meta(build, f"{url}/f", HTTP=gateway_pb2.ResolveSourceHTTPRequest(ChecksumRequest=wanted))
        assert (
            found.HTTP.ChecksumResponse.Digest == f"{name}:{hashlib.new(name, b'content+more').hexdigest()}"
        )
        assert found.HTTP.ChecksumResponse.Suffix == b"+more"

    def test_of_a_repository(self, build: Build, website: tuple[str, Path]) -> None:
        url, folder = website
        git(folder, "init", "-q", "-b", "main")
        (folder / "f").write_text("x")
        git(folder, "add", "f")
        git(folder, "commit", "-qm", "one")
        git(folder, "tag", "-a", "v1", "-m", "first")
        git(folder, "update-server-info")
        commit, tag = git(folder, "rev-parse", "HEAD"), git(folder, "rev-parse", "v1")
        attrs = {"git.fullurl": f"{url}/.git"}
        head = meta(build, "git://x", attrs).Git
        assert (head.Ref, head.Checksum, head.CommitChecksum) == ("refs/heads/main", commit, "")
        objects = gateway_pb2.ResolveSourceGitRequest(ReturnObject=True)
        found = meta(build, "git://x#v1", attrs, Git=objects).Git
        assert (found.Ref, found.Checksum, found.CommitChecksum) == ("refs/tags/v1", tag, commit)
        assert found.CommitObject.startswith(b"tree ")
        assert found.TagObject.startswith(f"object {commit}".encode())

    def test_of_an_image_without_attestations(self, build: Build, base: BaseImages) -> None:
        image = gateway_pb2.ResolveSourceImageRequest(NoConfig=True, AttestationChain=True)
        found = meta(build, f"docker-image://{base.index}", Image=image).Image
        assert (found.Digest, found.Config) == (base.digest, b"")
        chain = found.AttestationChain
        assert (chain.Root, chain.AttestationManifest) == (base.digest, "")
        assert chain.ImageManifest == base.platforms["linux/amd64"]
        assert list(chain.Blobs) == [base.digest]

    def test_of_an_image_with_provenance(
        self, build: Build, base: BaseImages, crossdock: Crossdock, repository: str, tmp_path: Path
    ) -> None:
        (tmp_path / "Dockerfile").write_text(f"FROM {base.index}\nRUN true\n")
        crossdock(
            "build", "--builder", "embedded", "--provenance=mode=max", "--push", "-t", f"{repository}:1", tmp_path
        ).ok()  # fmt: skip
        kind = "https://slsa.dev/provenance/v1"
        image = gateway_pb2.ResolveSourceImageRequest(ResolveAttestations=[kind])
        found = meta(build, f"docker-image://{repository}:1", Image=image).Image
        chain = found.AttestationChain
        assert chain.Root == found.Digest
        for digest, blob in chain.Blobs.items():
            assert "sha256:" + hashlib.sha256(blob.data).hexdigest() == digest
        layers = json.loads(chain.Blobs[chain.AttestationManifest].data)["layers"]
        (statement,) = [layer["digest"] for layer in layers]
        assert json.loads(chain.Blobs[statement].data)["predicateType"] == kind
        unwanted = gateway_pb2.ResolveSourceImageRequest(AttestationChain=True)
        assert statement not in meta(build, f"docker-image://{repository}:1", Image=unwanted).Image.AttestationChain.Blobs  # fmt: skip
