"""Debian's docker-buildx builds on ``crossdock serve``: contexts, outputs, errors, the store."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import tarfile
import threading
import time
from io import BytesIO
from typing import TYPE_CHECKING

import pytest

from support.servers import skopeo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.server.conftest import Buildx, Server
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay", "dockercli")

RUNS = """\
FROM {base} AS build
ARG TARGETPLATFORM
RUN echo "for $TARGETPLATFORM" && uname -m > /machine
FROM {base}
COPY --from=build /machine /machine
COPY . /context
"""


@pytest.fixture
def context(tmp_path: Path, base: BaseImages) -> Path:
    folder = tmp_path / "context"
    (folder / "sub").mkdir(parents=True)
    (folder / "Dockerfile").write_text(RUNS.format(base=base.index))
    (folder / ".dockerignore").write_text("left-out\n")
    (folder / "left-out").write_text("x")
    (folder / "sub/file").write_text("one")
    (folder / "link").symlink_to("sub/file")
    return folder


def layout_files(config: str, folder: Path) -> set[str]:
    """Paths in an archive that an output wrote."""
    with tarfile.open(folder / config) as archive:
        return {name.removeprefix("./") for name in archive.getnames()}


class TestContexts:
    def test_two_platforms_are_built_and_pushed_from_a_directory(
        self, buildx: Buildx, context: Path, repository: str
    ) -> None:
        done = buildx.build(
            "--platform", "linux/amd64,linux/arm64", "-t", f"{repository}:1", "--push", context
        )
        assert "for linux/arm64" in done.stderr
        index = json.loads(
            skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{repository}:1").stdout
        )
        assert [m["platform"]["architecture"] for m in index["manifests"]] == [
            "amd64",
            "arm64",
            "unknown",
            "unknown",
        ]

    def test_files_left_out_by_the_ignore_file_do_not_come(
        self, buildx: Buildx, context: Path, tmp_path: Path
    ) -> None:
        buildx.build("-o", tmp_path / "out", context)
        assert sorted(p.name for p in (tmp_path / "out/context").iterdir()) == [
            ".dockerignore",
            "Dockerfile",
            "link",
            "sub",
        ]
        assert (tmp_path / "out/context/link").readlink().as_posix() == "sub/file"

    def test_a_second_build_transfers_only_what_changed(
        self, buildx: Buildx, tmp_path: Path, base: BaseImages
    ) -> None:
        folder = tmp_path / "many"
        folder.mkdir()
        (folder / "Dockerfile").write_text(f"FROM {base.index}\nCOPY . /x\n")
        for number in range(50):
            (folder / f"f{number}").write_bytes(os.urandom(20_000))
        first = buildx.build(folder)
        (folder / "f7").write_bytes(b"changed")
        (folder / "f8").unlink()
        second = buildx.build("-o", tmp_path / "out", folder)
        assert "transferring context: 1.00MB" in first.stderr
        assert "MB" not in "".join(x for x in second.stderr.splitlines() if "transferring context" in x)
        assert (tmp_path / "out/x/f7").read_bytes() == b"changed"
        assert not (tmp_path / "out/x/f8").exists()

    def test_an_archive_on_standard_input(self, buildx: Buildx, context: Path, tmp_path: Path) -> None:
        data = BytesIO()
        with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as archive:
            archive.add(context, ".")
        buildx.build("-o", tmp_path / "out", "-", stdin=data.getvalue())
        assert (tmp_path / "out/context/sub/file").read_text() == "one"

    def test_a_dockerfile_on_standard_input(self, buildx: Buildx, base: BaseImages, tmp_path: Path) -> None:
        buildx.build("-o", tmp_path / "out", "-", stdin=f"FROM {base.index}\nRUN echo hi > /hi\n".encode())
        assert (tmp_path / "out/hi").read_text() == "hi\n"

    def test_a_git_repository(self, buildx: Buildx, context: Path, tmp_path: Path) -> None:
        env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": str(tmp_path)}
        for command in (
            "git init -q -b main .",
            "git add -A",
            "git -c user.name=a -c user.email=a@example.com commit -qm one",
            "git update-server-info",
        ):
            subprocess.run(command.split(), cwd=context, env=env, check=True)
        with serving(context) as url:
            buildx.build("-o", tmp_path / "out", f"{url}/.git#main")
        assert (tmp_path / "out/context/sub/file").read_text() == "one"

    def test_named_contexts_from_a_directory_and_an_image(
        self, buildx: Buildx, base: BaseImages, tmp_path: Path
    ) -> None:
        (tmp_path / "named").mkdir()
        (tmp_path / "named/file").write_text("named")
        (tmp_path / "main").mkdir()
        (tmp_path / "main/Dockerfile").write_text("FROM start\nCOPY --from=extra file /file\n")
        buildx.build(
            "--build-context", f"extra={tmp_path / 'named'}",
            "--build-context", f"start=docker-image://{base.index}",
            "-o", tmp_path / "out", tmp_path / "main",
        )  # fmt: skip
        assert (tmp_path / "out/file").read_text() == "named"

    def test_an_oci_layout_as_named_context(
        self, buildx: Buildx, busybox_layout: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "main").mkdir()
        (tmp_path / "main/Dockerfile").write_text("FROM start\nRUN echo ran > /ran\n")
        buildx.build(
            "--build-context", f"start=oci-layout://{busybox_layout}:latest",
            "-o", tmp_path / "out", tmp_path / "main",
        )  # fmt: skip
        assert (tmp_path / "out/ran").read_text() == "ran\n"


class TestSecrets:
    def test_a_secret_reaches_the_step_and_no_log(
        self, buildx: Buildx, server: Server, base: BaseImages, tmp_path: Path
    ) -> None:
        (tmp_path / "tok").write_text("s3cr3t-value")
        text = f"FROM {base.index}\nRUN --mount=type=secret,id=tok wc -c < /run/secrets/tok; cat /run/secrets/tok\n"
        done = buildx.build("--secret", f"id=tok,src={tmp_path / 'tok'}", "-", stdin=text.encode())
        assert "12" in done.stderr
        assert "s3cr3t-value" not in done.stderr + server.log

    def test_a_secret_that_the_client_lacks_is_named(self, buildx: Buildx, base: BaseImages) -> None:
        text = f"FROM {base.index}\nRUN --mount=type=secret,id=tok,required=true true\n"
        done = buildx.build("-", stdin=text.encode(), check=False)
        assert done.returncode != 0
        assert "secret tok: not found" in done.stderr

    def test_an_agent_is_reached_through_the_session(
        self, buildx: Buildx, base: BaseImages, tmp_path: Path
    ) -> None:
        with agent(tmp_path / "agent.sock") as seen:
            # Without ssh-add in the image, netcat-less: busybox can tell that the socket is there.
            text = f"FROM {base.index}\nRUN --mount=type=ssh test -S $SSH_AUTH_SOCK && echo found\n"
            done = buildx.build("--ssh", f"default={tmp_path / 'agent.sock'}", "-", stdin=text.encode())
            assert "found" in done.stderr
            del seen


class TestOutputs:
    @pytest.mark.parametrize("kind", ["tar", "oci", "docker"])
    def test_an_archive_is_written_by_the_client(
        self, buildx: Buildx, context: Path, tmp_path: Path, kind: str
    ) -> None:
        buildx.build("-t", "example.com/x:1", "-o", f"type={kind},dest={tmp_path / 'out.tar'}", context)
        names = layout_files("out.tar", tmp_path)
        assert ("context/sub/file" if kind == "tar" else "index.json") in names

    def test_a_layout_directory_is_written_through_the_content_store(
        self, buildx: Buildx, context: Path, tmp_path: Path
    ) -> None:
        buildx.build("-o", f"type=oci,dest={tmp_path / 'layout'},tar=false", context)
        assert json.loads(skopeo("inspect", "--raw", f"oci:{tmp_path / 'layout'}").stdout)["layers"]

    def test_several_platforms_into_a_directory_get_folders(
        self, buildx: Buildx, context: Path, tmp_path: Path
    ) -> None:
        buildx.build("--platform", "linux/amd64,linux/arm64", "-o", tmp_path / "out", context)
        assert (tmp_path / "out/linux_arm64/machine").read_text() == "aarch64\n"
        assert (tmp_path / "out/linux_amd64/machine").read_text() == "x86_64\n"

    def test_metadata_has_the_digest_that_was_pushed(
        self, buildx: Buildx, context: Path, repository: str, tmp_path: Path
    ) -> None:
        metadata = tmp_path / "metadata.json"
        buildx.build("-t", f"{repository}:1", "--push", "--metadata-file", metadata, context)
        written = json.loads(metadata.read_text())
        raw = skopeo(
            "inspect",
            "--raw",
            "--tls-verify=false",
            f"docker://{repository}@{written['containerimage.digest']}",
        )
        assert json.loads(raw.stdout)["schemaVersion"] == 2

    def test_an_unknown_attribute_is_named_at_once(
        self, buildx: Buildx, context: Path, tmp_path: Path
    ) -> None:
        started = time.monotonic()
        done = buildx.build("-o", f"type=oci,dest={tmp_path / 'x'},nonsense=1", context, check=False)
        assert "nonsense" in done.stderr
        assert time.monotonic() - started < 4.0


class TestCachesAndAttestations:
    @pytest.mark.parametrize("kind", ["registry", "inline", "local"])
    def test_a_cache_is_exported_and_used_after_a_prune(
        self, buildx: Buildx, base: BaseImages, repository: str, tmp_path: Path, kind: str
    ) -> None:
        text = f"FROM {base.index}\nRUN cat /proc/sys/kernel/random/uuid > /id\n".encode()
        directory = tmp_path / "cache"
        target, source = {
            "registry": (f"type=registry,ref={repository}:cache,mode=max", f"{repository}:cache"),
            "inline": ("type=inline", f"{repository}:1"),
            "local": (f"type=local,dest={directory},mode=max", f"type=local,src={directory}"),
        }[kind]
        buildx.build("--cache-to", target, "-t", f"{repository}:1", "--push", "-", stdin=text)
        buildx("prune", "-af")
        done = buildx.build("--cache-from", source, "-", stdin=text)
        assert "importing cache manifest" in done.stderr
        assert any(
            line.endswith("CACHED") and f"{step} CACHED" in done.stderr
            for line in done.stderr.splitlines()
            if "RUN cat" in line or line.endswith("CACHED")
            for step in [line.partition(" ")[0]]
        )

    def test_provenance_is_among_the_files_when_asked_for(
        self, buildx: Buildx, context: Path, tmp_path: Path
    ) -> None:
        buildx.build("--provenance=mode=max", "-o", tmp_path / "out", context)
        provenance = json.loads((tmp_path / "out/provenance.json").read_text())
        assert provenance["predicateType"].startswith("https://slsa.dev/provenance/")


class TestErrors:
    def test_a_failed_step_shows_its_output_and_place(self, buildx: Buildx, base: BaseImages) -> None:
        text = f"FROM {base.index}\nRUN echo before; exit 3\n"
        done = buildx.build("-", stdin=text.encode(), check=False)
        assert done.returncode != 0
        assert ">>> RUN echo before; exit 3" in done.stderr
        assert "did not complete successfully: exit code: 3" in done.stderr
        assert " > [2/2] RUN echo before; exit 3:" in done.stderr

    def test_a_wrong_dockerfile_shows_its_place(self, buildx: Buildx, base: BaseImages) -> None:
        done = buildx.build("-", stdin=f"FROM {base.index}\nRUNN x\n".encode(), check=False)
        assert ">>> RUNN x" in done.stderr

    def test_a_missing_file_names_no_path_of_the_server(
        self, buildx: Buildx, server: Server, tmp_path: Path, base: BaseImages
    ) -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c/Dockerfile").write_text(f"FROM {base.index}\nCOPY nope /x\n")
        done = buildx.build(tmp_path / "c", check=False)
        assert '"/nope": not found' in done.stderr
        assert str(server.root) not in done.stderr

    def test_a_missing_image_is_named(self, buildx: Buildx, repository: str) -> None:
        done = buildx.build("-", stdin=f"FROM {repository}:none\n".encode(), check=False)
        assert f"{repository}:none: not found" in done.stderr

    def test_an_entitlement_must_be_allowed_by_the_server(self, buildx: Buildx, base: BaseImages) -> None:
        done = buildx.build(
            "--allow", "network.host", "-", stdin=f"FROM {base.index}\nRUN true\n".encode(), check=False
        )
        assert "not allowed by build daemon configuration" in done.stderr


class TestLife:
    def test_an_interrupted_build_ends_its_steps(
        self, buildx: Buildx, server: Server, base: BaseImages, tmp_path: Path
    ) -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c/Dockerfile").write_text(f"FROM {base.index}\nRUN echo started; sleep 300\n")
        client = buildx.start("build", "--progress", "plain", tmp_path / "c")
        assert client.stdout is not None
        for line in client.stdout:
            if b"started" in line and b"echo" not in line:
                break
        client.send_signal(signal.SIGINT)
        client.communicate(timeout=30)
        deadline = time.monotonic() + 20
        while running_steps("sleep 300"):
            assert time.monotonic() < deadline, "the step is still running"
            time.sleep(0.1)
        # and the server goes on
        buildx.build("-", stdin=f"FROM {base.index}\nRUN echo on\n".encode())

    def test_a_killed_client_ends_its_steps(self, buildx: Buildx, base: BaseImages, tmp_path: Path) -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c/Dockerfile").write_text(f"FROM {base.index}\nRUN echo started; sleep 301\n")
        client = buildx.start("build", "--progress", "plain", tmp_path / "c")
        assert client.stdout is not None
        for line in client.stdout:
            if b"started" in line and b"echo" not in line:
                break
        client.kill()
        client.communicate(timeout=30)
        deadline = time.monotonic() + 20
        while running_steps("sleep 301"):
            assert time.monotonic() < deadline, "the step is still running"
            time.sleep(0.1)

    def test_stopping_the_server_ends_a_build(
        self, buildx: Buildx, server: Server, base: BaseImages, tmp_path: Path
    ) -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c/Dockerfile").write_text(f"FROM {base.index}\nRUN echo started; sleep 302\n")
        client = buildx.start("build", "--progress", "plain", tmp_path / "c")
        assert client.stdout is not None
        for line in client.stdout:
            if b"started" in line and b"echo" not in line:
                break
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 15
        client.communicate(timeout=30)
        assert client.returncode != 0
        assert not running_steps("sleep 302")
        assert not server.socket.exists()

    def test_two_clients_do_shared_work_once(self, buildx: Buildx, base: BaseImages, tmp_path: Path) -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c/Dockerfile").write_text(
            f"FROM {base.index}\nRUN sleep 2; cat /proc/sys/kernel/random/uuid > /id\n"
        )
        clients = [
            buildx.start("build", "--progress", "plain", "-o", tmp_path / f"out{n}", tmp_path / "c")
            for n in range(3)
        ]
        for client in clients:
            out, _ = client.communicate(timeout=60)
            assert client.returncode == 0, out.decode()
        assert len({(tmp_path / f"out{n}/id").read_text() for n in range(3)}) == 1

    def test_du_and_prune_speak_of_the_servers_store(self, buildx: Buildx, context: Path) -> None:
        buildx.build(context)
        assert "Reclaimable" in buildx("du").stdout
        assert "Total" in buildx("prune", "-f", "--all").stdout

    def test_bake_builds_targets_that_depend_on_each_other(
        self, buildx: Buildx, base: BaseImages, tmp_path: Path
    ) -> None:
        (tmp_path / "bake.json").write_text(
            json.dumps(
                {
                    "target": {
                        "one": {"dockerfile-inline": f"FROM {base.index}\nRUN echo one > /one\n"},
                        "two": {
                            "contexts": {"start": "target:one"},
                            "dockerfile-inline": "FROM start\nRUN cat /one > /two\n",
                            "output": [str(tmp_path / "out")],
                        },
                    }
                }
            )
        )
        buildx("bake", "-f", tmp_path / "bake.json", "--progress", "plain", "one", "two")
        assert (tmp_path / "out/two").read_text() == "one\n"

    @pytest.mark.parametrize("output", ["type=oci,dest={}.tar", "type=local,dest={}"])
    def test_bake_shows_the_outputs_of_its_targets_apart(
        self, buildx: Buildx, tmp_path: Path, output: str
    ) -> None:
        """Each is a step of its own: buildx puts together what has the same digest."""
        targets = {
            name: {
                "dockerfile-inline": f"FROM scratch\nLABEL name={name}\n",
                "output": [output.format(tmp_path / name)],
            }
            for name in ("one", "two")
        }
        (tmp_path / "bake.json").write_text(json.dumps({"target": targets}))
        done = buildx("bake", "-f", tmp_path / "bake.json", "--progress", "plain", "one", "two")
        said = done.stderr + done.stdout
        shown = set(re.findall(r"#(\d+) \[(one|two)\] exporting to", said))
        assert {name for _, name in shown} == {"one", "two"}
        assert len({number for number, _ in shown}) == 2

    def test_the_outline_is_answered(self, buildx: Buildx, context: Path) -> None:
        done = buildx("build", "--print=targets", context, env={"BUILDX_EXPERIMENTAL": "1"})
        assert "build" in done.stdout


def running_steps(command: str) -> list[str]:
    """Command lines on this machine that are exactly ``command``."""
    wanted = command.replace(" ", "\0").encode() + b"\0"
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read() == wanted:
                    found.append(pid)
        except OSError:
            continue
    return found


class serving:  # noqa: N801
    """A web server for a folder, for the length of a block."""

    def __init__(self, folder: Path) -> None:
        import functools
        import http.server

        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_args: object) -> None:
                pass

        handler = functools.partial(Quiet, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class agent:  # noqa: N801
    """A socket where an agent would listen."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(1)

    def __enter__(self) -> Iterator[None]:
        return iter(())

    def __exit__(self, *_: object) -> None:
        self._socket.close()
