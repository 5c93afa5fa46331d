"""Raw LLB through the whole engine: store, solver, sandbox, runtime; as root and as an ordinary user."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from integration.engine.harness import Worker

pytestmark = pytest.mark.needs("base", "userns", "crun")


def test_copy_run_and_read_back(worker: Worker) -> None:
    (worker.context / "hello.txt").write_text("hello")
    said = worker.run(
        """
        with open_engine() as engine:
            sink = Sink()
            out = run(copied(local(), "/hello.txt", "/app/", onto=base()), "cat /app/hello.txt; echo made > /made")
            (ref,) = solve(engine, out, sink=sink)
            say(made=text(engine, ref, "/made"), log=sink.log, layers=len(ref.layers), app=names(engine, ref, "/app"))
            first = [e.name for e in sink.of("Vertex")][:5]
            say(announced=first, errors=[e.error for e in sink.of("Vertex") if e.error])
        """
    )
    assert said["made"] == "made\n"
    assert said["log"] == "hello"
    assert said["layers"] == 4
    assert said["app"] == ["hello.txt"]
    assert said["announced"] == ["load base", "base", "files", "load context", "copy"]
    assert said["errors"] == []


CACHED = """
with open_engine() as engine:
    sink = Sink()
    out = run(copied(local(), "/a", "/a", onto=base()), "cat /a > /b", name="run")
    (ref,) = solve(engine, out, sink=sink)
    loaded = sorted(m for m in sys.modules if m.startswith(("crossdock.engine.sandbox.sandbox", "crossdock.layers", "urllib3")))
    say(cached=sink.cached, b=text(engine, ref, "/b"), loaded=loaded)
"""


def test_a_second_process_finds_everything_and_loads_nothing_heavy(worker: Worker) -> None:
    (worker.context / "a").write_text("1")
    assert worker.run(CACHED)["cached"]["run"] is False
    said = worker.run(CACHED)
    assert said["cached"] == {
        "load base": False, "load context": False, "base": True, "files": True, "copy": True, "run": True,
    }  # fmt: skip
    assert said["loaded"] == []


def test_touching_a_file_changes_nothing_and_editing_it_does(worker: Worker) -> None:
    (worker.context / "a").write_text("1")
    worker.run(CACHED)
    os.utime(worker.context / "a", (1, 1))
    assert worker.run(CACHED)["cached"]["run"] is True
    (worker.context / "a").write_text("2")
    said = worker.run(CACHED)
    assert (said["cached"]["copy"], said["cached"]["run"], said["b"]) == (False, False, "2")


def test_a_failing_step_tells_what_and_where(worker: Worker) -> None:
    said = worker.run(
        """
        with open_engine() as engine:
            try:
                solve(engine, run(base(), "echo one; echo two >&2; exit 7", name="[2/2] RUN bad"))
            except StepFailed as exc:
                say(code=exc.step_exit_code, tail=sorted(exc.log_tail), name=exc.vertex_name, summary=exc.summary,
                    vertex=exc.vertex, platform=exc.platform)
        """
    )
    assert said["code"] == 7
    assert said["tail"] == ["one", "two"]
    assert said["name"] == "[2/2] RUN bad"
    assert said["summary"].endswith("did not complete successfully: exit code: 7")
    assert said["vertex"].startswith("sha256:")
    assert said["platform"].startswith("linux/")


def test_other_exit_codes_may_be_valid(worker: Worker) -> None:
    said = worker.run(
        """
        with open_engine() as engine:
            (ref,) = solve(engine, run(base(), "echo x > /x; exit 7", meta={"valid_exit_codes": (0, 7)}))
            say(x=text(engine, ref, "/x"))
        """
    )
    assert said["x"] == "x\n"


def test_a_failed_step_is_not_cached_and_leaves_no_layer(worker: Worker) -> None:
    body = """
    with open_engine() as engine:
        before = len(list((STORE / "layers").iterdir())) if (STORE / "layers").exists() else 0
        try:
            solve(engine, base())
            middle = len(list((STORE / "layers").iterdir()))
            solve(engine, run(base(), "exit 1"))
        except StepFailed as exc:
            say(failed=True, left=len(list((STORE / "layers").iterdir())) - middle)
    """
    assert worker.run(body) == {"failed": True, "left": 0}
    assert worker.run(body)["failed"]


def test_user_environment_directory_and_secrets(worker: Worker) -> None:
    said = worker.run(
        """
        with open_engine() as engine:
            sink = Sink()
            out = run(base(), 'echo $A $TOKEN; pwd; cat /run/secrets/key; echo; cat /run/secrets/key > /dev/null; id -u',
                meta={"env": ("A=1",), "cwd": "/work/dir", "user": "root", "remove_mount_stubs_recursive": True},
                secret_env=(SecretEnv(id="token", name="TOKEN"),),
                mounts=(Mount(dest="/run/secrets/key", mount_type=MountType.SECRET, secret_opt=SecretOpt(id="key")),))
            secrets = {"token": Secret("hunter2hunter2"), "key": Secret("key-value-123")}
            (ref,) = solve(engine, out, sink=sink, secrets=secrets.get)
            say(log=sink.log, run=names(engine, ref, "/run") if engine.stat(ref, "/run", cancel=CancelToken()) else [])
        """
    )
    assert said["log"] == "1 ***\n/work/dir\n***\n0\n"
    assert said["run"] == []


def test_a_missing_secret_is_an_error_and_an_optional_one_is_not(worker: Worker) -> None:
    said = worker.run(
        """
        def out(optional):
            return run(base(), "ls /run/secrets 2>/dev/null; true", mounts=(Mount(dest="/run/secrets/key",
                mount_type=MountType.SECRET, secret_opt=SecretOpt(id="key", optional=optional)),))
        with open_engine() as engine:
            solve(engine, out(True))
            try:
                solve(engine, out(False))
            except SolveError as exc:
                say(error=exc.summary, hint=exc.hint)
        """
    )
    assert said == {"error": "secret key: not found", "hint": "give it with --secret id=key,src=FILE"}


def test_bind_mounts_with_selector_and_read_only(worker: Worker) -> None:
    (worker.context / "sub").mkdir()
    (worker.context / "sub/f").write_text("from context")
    (worker.context / "hidden").write_text("secret")
    said = worker.run(
        """
        tree = local(**{"local.excludepatterns": '["hidden"]'})
        def out(command):
            return run(base(), command, inputs=[tree], mounts=(
                Mount(dest="/src", input=1, readonly=True),
                Mount(dest="/sub", input=1, selector="/sub", readonly=True),
                Mount(dest="/rw", input=1)))
        with open_engine() as engine:
            sink = Sink()
            (ref,) = solve(engine, out(
                "ls /src; cat /sub/f; touch /src/x 2>/dev/null || echo ro; echo w > /rw/w && echo rw; stat -c %u /src/sub"),
                sink=sink)
            say(log=sink.log, left=[n for n in names(engine, ref) if n in ("src", "sub", "rw")])
        """
    )
    assert said["log"] == "sub\nfrom contextro\nrw\n0\n"
    assert not (worker.context / "w").exists()


def test_a_mount_can_be_an_output(worker: Worker) -> None:
    said = worker.run(
        """
        op = ExecOp(meta=ExecMeta(args=("/bin/sh", "-c", "echo root > /r; echo out > /out/o")), mounts=(
            Mount(dest="/", input=0, output=0), Mount(dest="/out", output=1)))
        node = Node(op, [base()])
        with open_engine() as engine:
            root, out = solve(engine, Output(node, 0), Output(node, 1))
            say(r=text(engine, root, "/r"), o=text(engine, out, "/o"), names=names(engine, out), n=len(out.layers))
        """
    )
    assert said == {"r": "root\n", "o": "out\n", "names": ["o"], "n": 1}


def test_cache_mounts_keep_their_files_and_stay_out_of_layers(worker: Worker) -> None:
    body = """
    with open_engine() as engine:
        sink = Sink()
        mount = Mount(dest="/cache", mount_type=MountType.CACHE, cache_opt=CacheOpt(id="/cache"))
        (ref,) = solve(engine, run(base(), f"echo {time.time_ns()} >> /cache/log; wc -l < /cache/log", mounts=(mount,)), sink=sink)
        say(log=sink.log.strip(), cache=names(engine, ref, "/cache") if engine.stat(ref, "/cache", cancel=CancelToken()) else [])
    """
    assert worker.run(body) == {"log": "1", "cache": []}
    assert worker.run(body) == {"log": "2", "cache": []}


def test_a_step_may_mount_one_locked_cache_twice(worker: Worker) -> None:
    said = worker.run(
        """
        with open_engine() as engine:
            sink = Sink()
            option = CacheOpt(id="one", sharing=CacheSharing.LOCKED)
            mounts = [Mount(dest=d, mount_type=MountType.CACHE, cache_opt=option) for d in ("/a", "/b")]
            solve(engine, run(base(), "echo x > /a/f; cat /b/f", mounts=mounts), sink=sink)
            say(log=sink.log)
        """
    )
    assert said["log"] == "x\n"


def test_solves_at_once_share_steps_and_one_that_ends_does_not_hurt_the_other(worker: Worker) -> None:
    for n in range(300):
        (worker.context / f"f{n}").write_text(str(n) * 1000)
    said = worker.run(
        """
        from crossdock.errors import Cancelled
        results = []
        with open_engine() as engine:
            solve(engine, base())
            tokens = [CancelToken() for _ in range(4)]
            def one(n):
                out = run(copied(local(), "/", "/data", onto=base()), "sleep 1; cat /proc/sys/kernel/random/uuid > /id")
                try:
                    (ref,) = solve(engine, out, cancel=tokens[n])
                    results.append(text(engine, ref, "/id"))
                except Cancelled:
                    results.append("cancelled")
                except CrossdockError as exc:
                    results.append(repr(exc) + str(exc.detail))
            threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
            for n, thread in enumerate(threads):
                thread.start()
                time.sleep(0.05)
            tokens[0].cancel()
            for thread in threads:
                thread.join()
        say(results=sorted(results))
        """
    )
    cancelled, *ids = sorted(said["results"], key=lambda text: text != "cancelled")
    assert (cancelled, len(ids), len(set(ids))) == ("cancelled", 3, 1), said


def test_tmpfs_and_no_network(worker: Worker) -> None:
    said = worker.run(
        """
        with open_engine() as engine:
            sink = Sink()
            solve(engine, run(base(), "mount | grep -c ' /scratch type tmpfs'; ls /sys/class/net 2>/dev/null | sort | head -3",
                mounts=(Mount(dest="/scratch", mount_type=MountType.TMPFS, tmpfs_size=1 << 20),), network=NetMode.NONE),
                sink=sink)
            say(log=sink.log.split("\\n")[0])
        """
    )
    assert said["log"] == "1"


def test_entitlements_are_refused_unless_granted(worker: Worker) -> None:
    said = worker.run(
        """
        with open_engine() as engine:
            try:
                solve(engine, run(base(), "true", network=NetMode.HOST))
            except SolveError as exc:
                say(error=exc.summary, hint=exc.hint)
            solve(engine, run(base(), "true", network=NetMode.HOST), allow=frozenset({"network.host"}))
            say(granted=True)
        """
    )
    assert said["error"] == "network.host is not allowed"
    assert said["granted"] is True


def test_ownership_by_name_and_number(worker: Worker) -> None:
    (worker.context / "f").write_text("x")
    said = worker.run(
        """
        if worker.ids == "single":
            say(skip=True); raise SystemExit
        owner = ChownOpt(user=NamedUser("bob", 0), group=NamedUser("staff", 0))
        out = copied(local(), "/f", "/named", onto=base(), owner=owner)
        out = copied(local(), "/f", "/numbers", onto=out, owner=ChownOpt(user=12, group=34))
        out = run(out, "stat -c '%u:%g' /named /numbers /bin/busybox; su bob -c 'id -u'", name="look")
        with open_engine() as engine:
            sink = Sink()
            solve(engine, out, sink=sink)
            say(log=sink.log)
        """
    )
    if "skip" in said:
        pytest.skip("this user has no subordinate ids")
    assert said["log"].split() == ["1000:50", "12:34", "0:0", "1000"]


def test_removing_and_making_again_is_what_the_step_sees(worker: Worker) -> None:
    said = worker.run(
        """
        first = files(FileActionMkDir(path="/d/old", make_parents=True), FileActionMkFile(path="/d/f", data=b"1"), onto=base())
        again = files(FileActionRm(path="/d"), FileActionMkDir(path="/d"), FileActionMkFile(path="/d/g", data=b"2"),
                      FileActionSymlink(oldpath="g", newpath="/d/l"), onto=first)
        with open_engine() as engine:
            sink = Sink()
            (ref,) = solve(engine, run(again, "ls /d; cat /d/l; rm /d/g; ls -A /d"), sink=sink)
            say(log=sink.log, now=names(engine, ref, "/d"))
        """
    )
    assert said["log"] == "g\nl\n2l\n"
    assert said["now"] == ["l"]


def test_merge_and_diff(worker: Worker) -> None:
    said = worker.run(
        """
        one = files(FileActionMkFile(path="/one", data=b"1"), name="one")
        two = files(FileActionMkFile(path="/two", data=b"2"), name="two")
        merged = Output(Node(MergeOp((0, 1, 2)), [base(), one, two]))
        built = run(base(), "echo n > /new; rm /etc/group; echo changed > /etc/passwd")
        suffix = Output(Node(DiffOp(0, 1), [base(), built]))
        unrelated = files(FileActionMkFile(path="/etc/passwd", data=b"other"), FileActionMkFile(path="/x", data=b"x"),
            onto=files(FileActionMkDir(path="/etc")))
        general = Output(Node(DiffOp(0, 1), [base(), unrelated]))
        onto = Output(Node(MergeOp((0, 1)), [base(), general]))
        with open_engine() as engine:
            sink = Sink()
            m, s, g, o = solve(engine, run(merged, "cat /one /two"), suffix, general, onto, sink=sink)
            say(log=sink.log, suffix=names(engine, s), etc=names(engine, s, "/etc"),
                general=names(engine, g), onto=names(engine, o), x=text(engine, o, "/x"), p=text(engine, o, "/etc/passwd"))
        """
    )
    assert said["log"] == "12"
    assert "new" in said["suffix"]
    assert said["etc"] == ["passwd"]
    assert said["general"] == ["etc", "x"]
    assert said["onto"] == ["etc", "x"]
    assert (said["x"], said["p"]) == ("x", "other")


def test_ignoring_the_cache_runs_once_for_all_who_share_it(worker: Worker) -> None:
    body = """
    with open_engine() as engine:
        sink = Sink()
        shared = run(base(), "cat /proc/sys/kernel/random/uuid > /id", name="shared", ignore={ignore})
        a, b = run(shared, "cp /id /a", name="a"), run(shared, "cp /id /b", name="b")
        ra, rb = solve(engine, a, b, sink=sink)
        say(a=text(engine, ra, "/a"), b=text(engine, rb, "/b"), cached=sink.cached)
    """
    first = worker.run(body.format(ignore=False))
    again = worker.run(body.format(ignore=True))
    assert again["a"] == again["b"] != first["a"]
    assert again["cached"]["shared"] is False
    after = worker.run(body.format(ignore=False))
    assert after["a"] == again["a"]
    assert after["cached"]["a"] is True


def test_two_processes_run_a_step_once_and_share_it(worker: Worker) -> None:
    body = """
    with open_engine() as engine:
        sink = Sink()
        out = run(base(), "sleep 1; cat /proc/sys/kernel/random/uuid > /id", name="slow")
        (ref,) = solve(engine, out, sink=sink)
        say(id=text(engine, ref, "/id"), cached=sink.cached["slow"])
    """
    worker.run("with open_engine() as engine: solve(engine, base())")
    processes = [worker.start(body) for _ in range(3)]
    said = [worker.finish(process)[0] for process in processes]
    assert len({one["id"] for one in said}) == 1
    assert sorted(one["cached"] for one in said) == [False, True, True]


def test_independent_steps_run_at_once(worker: Worker) -> None:
    said = worker.run(
        """
        with open_engine(parallelism=4) as engine:
            solve(engine, base())
            started = time.monotonic()
            solve(engine, *(run(base(), f"sleep 1; echo {n}", name=f"s{n}") for n in range(4)))
            say(took=time.monotonic() - started)
        """
    )
    assert said["took"] < 3


def test_cancelling_ends_the_step_at_once(worker: Worker) -> None:
    said = worker.run(
        """
        from crossdock.errors import Cancelled
        with open_engine() as engine:
            token = CancelToken()
            sink = Sink()
            threading.Timer(1, token.cancel).start()
            started = time.monotonic()
            try:
                solve(engine, run(base(), "sleep 100", name="sleep"), sink=sink, cancel=token)
            except Cancelled:
                engine.close()
                say(took=time.monotonic() - started, error=[e.error for e in sink.of("Vertex") if e.error])
        """
    )
    assert said["took"] < 3
    assert said["error"] == ["context canceled"]


def test_kill_in_the_middle_and_the_next_build(worker: Worker) -> None:
    body = """
    with open_engine() as engine:
        say(ready=True)
        (ref,) = solve(engine, run(base(), "echo started > /s; sleep {seconds}; echo done > /d"))
        say(d=text(engine, ref, "/d"))
    """
    process = worker.start(body.format(seconds=30))
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stderr.close()
    assert worker.run(body.format(seconds=0))["d"] == "done\n"


def test_archives_are_unpacked_over_links_of_the_base(worker: Worker) -> None:
    import tarfile

    with tarfile.open(worker.context / "a.tar.gz", "w:gz") as tar:
        (worker.context / "x").write_text("x")
        tar.add(worker.context / "x", "lib/x")
    said = worker.run(
        """
        linked = files(FileActionMkDir(path="/usr/lib", make_parents=True),
                       FileActionSymlink(oldpath="usr/lib", newpath="/lib"), onto=base())
        with open_engine() as engine:
            (ref,) = solve(engine, copied(local(), "/a.tar.gz", "/", onto=linked, attempt_unpack=True))
            say(lib=engine.stat(ref, "/lib", cancel=CancelToken()).target, x=text(engine, ref, "/usr/lib/x"))
        """
    )
    assert said == {"lib": "usr/lib", "x": "x"}


def test_an_overlay_mount_shows_what_the_view_shows(worker: Worker) -> None:
    said = worker.run(
        """
        one = files(FileActionMkDir(path="/a/b/c", make_parents=True), FileActionMkFile(path="/a/f", data=b"1"),
                    FileActionMkFile(path="/a/b/g", data=b"1"))
        two = files(FileActionRm(path="/a/b"), FileActionMkDir(path="/a/b"), FileActionMkFile(path="/a/b/h", data=b"2"),
                    FileActionRm(path="/a/f"), onto=one)
        three = files(FileActionMkFile(path="/a/f", data=b"3"), FileActionMkDir(path="/a/b/c"), onto=two)
        with open_engine() as engine:
            (ref,) = solve(engine, three)
            def listed(path="/"):
                found = []
                for f in engine.read_dir(ref, path, cancel=CancelToken()):
                    full = path.rstrip("/") + "/" + f.name
                    found.append(full)
                    if f.mode & 0o170000 == 0o040000:
                        found += listed(full)
                return found
            with engine.mounted(ref.layers, sink=Sink(), cancel=CancelToken()) as root:
                real = [str(p.relative_to(root)) for p in sorted(root.rglob("*"))]
            say(view=sorted(listed()), mount=sorted("/" + p for p in real))
        """
    )
    assert said["view"] == said["mount"] == ["/a", "/a/b", "/a/b/c", "/a/b/h", "/a/f"]


def test_one_build_sees_each_file_of_a_context_as_it_was(worker: Worker) -> None:
    (worker.context / "f").write_text("1")
    said = worker.run(
        """
        with open_engine() as engine:
            from crossdock.engine.ops.fileop import FileSolverOp
            plain = FileSolverOp.execute
            def late(self, inputs, ctx):
                if self.node.name == "copy":
                    (CONTEXT / "f").write_text("22")
                return plain(self, inputs, ctx)
            FileSolverOp.execute = late
            try:
                solve(engine, copied(local(), "/f", "/f"))
            except CrossdockError as exc:
                say(error=exc.summary, kind=type(exc).__name__)
        """
    )
    assert said["kind"] == "ContextError"
    assert said["error"].endswith("/f changed while the build was reading it")
