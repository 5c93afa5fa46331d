"""LLB as JSON: against the generated protobuf classes, whose names Go's JSON follows."""

from __future__ import annotations

import base64

from google.protobuf.json_format import MessageToDict

from crossdock.buildkit.proto import ops_pb2
from crossdock.builds.attest.steps import BuildSteps, layer_chains
from crossdock.errors import Position, SourceFile, SourceRange
from crossdock.image.platform import Platform
from crossdock.llb import ops as o
from crossdock.llb.codec import marshal
from crossdock.llb.graph import Node, Output

AMD64 = Platform("linux", "amd64")
FILE = SourceFile("Dockerfile", "FROM x\nRUN y\n")


def place(line: int, column: int = 0) -> SourceRange:
    return SourceRange(FILE, Position(line), Position(line, column))


def graph() -> Output:
    image = Node(
        o.SourceOp("docker-image://x", {"image.resolvemode": "pull", "b": "c"}),
        platform=AMD64,
        source=place(1),
    )
    local = Node(o.SourceOp("local://context", {"local.session": "s", "local.unique": "u"}))
    copy = o.FileActionCopy(
        src="/a",
        dest="/b",
        owner=o.ChownOpt(user=0, group=o.NamedUser("staff", 1)),
        mode=0o644,
        include_patterns=("*",),
        attempt_unpack=True,
    )
    actions = (
        o.FileAction(action=copy, input=0, secondary_input=1, output=o.SKIP_OUTPUT),
        o.FileAction(action=o.FileActionMkFile(path="/f", data=b"\x00x"), input=2, output=0),
        o.FileAction(action=o.FileActionMkDir(path="/d", make_parents=True), input=3),
        o.FileAction(action=o.FileActionRm(path="/r", allow_wildcard=True), input=4),
        o.FileAction(action=o.FileActionSymlink(oldpath="/o", newpath="/n"), input=5),
    )
    files = Node(o.FileOp(actions), [Output(image), Output(local)])
    step = o.ExecOp(
        meta=o.ExecMeta(
            args=("a", "<b>"),
            env=("X=1",),
            user="me",
            proxy_env=o.ProxyEnv(http_proxy="http://u:p@h", no_proxy="x"),
            extra_hosts=(o.HostIP("h", "1.2.3.4"),),
            ulimit=(o.Ulimit("nofile", 1, 2),),
            valid_exit_codes=(0, 3),
        ),
        mounts=(
            o.Mount(dest="/", input=0, output=0),
            o.Mount(dest="/t", mount_type=o.MountType.TMPFS, tmpfs_size=7),
            o.Mount(
                dest="/c",
                mount_type=o.MountType.CACHE,
                cache_opt=o.CacheOpt(id="c", sharing=o.CacheSharing.LOCKED),
            ),
            o.Mount(dest="/s", mount_type=o.MountType.SECRET, secret_opt=o.SecretOpt(id="s", uid=5)),
            o.Mount(dest="/a", mount_type=o.MountType.SSH, ssh_opt=o.SshOpt(id="d", optional=True)),
        ),
        network=o.NetMode.HOST,
        secret_env=(o.SecretEnv(id="i", name="N"),),
        cdi_devices=(o.CdiDevice("vendor/x"),),
    )
    run = Node(step, [Output(files)], platform=AMD64, constraints=("f",), source=place(2, 5))
    merge = Node(o.MergeOp((0, 1)), [Output(run), Output(image)])
    diff = Node(o.DiffOp(0, 1), [Output(image), Output(merge)])
    return Output(Node(o.PassthroughOp(id="p", outputs=(0,)), [Output(diff)]))


def lower(value: object) -> object:
    """Names without case and underscores: Go keeps those of the definition, protobuf's JSON changes them."""
    if isinstance(value, dict):
        return {k.replace("_", "").lower(): lower(v) for k, v in value.items()}
    if isinstance(value, list):
        return [lower(v) for v in value]
    if isinstance(value, str):
        return value
    return value


def enums(value: object) -> object:
    """Numbers as numbers: protobuf's JSON writes 64-bit ones as text."""
    if isinstance(value, dict):
        return {k: enums(v) for k, v in value.items()}
    if isinstance(value, list):
        return [enums(v) for v in value]
    return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value


def test_steps_say_what_the_ops_say() -> None:
    output = graph()
    steps = BuildSteps(output)
    listed = steps.config()["llbDefinition"]
    assert isinstance(listed, list)
    definition = marshal(output)
    assert len(listed) == len(definition.ops)
    for step, raw in zip(listed[:-1], definition.ops[:-1], strict=True):
        message = ops_pb2.Op.FromString(raw)
        expected = MessageToDict(message, use_integers_for_enums=True)
        expected.pop("inputs", None)
        kind = message.WhichOneof("op")
        own = step["op"]
        ((name, body),) = own["Op"].items()
        wanted = expected.pop(kind)
        # What differs on purpose, or stands in a member of its own in Go's form.
        if kind == "file":
            for action in wanted["actions"]:
                which = next(k for k in ("copy", "mkfile", "mkdir", "rm", "symlink") if k in action)
                action["Action"] = {which: action.pop(which)}
                for member in ("input", "secondaryInput", "output"):
                    action.setdefault(member, 0)
                for part in ("user", "group"):
                    owner = action["Action"][which].get("owner", {})
                    if part in owner:
                        owner[part] = {"User": {k: v for k, v in owner[part].items() if v}}
        if kind == "exec":
            assert wanted["meta"]["proxyEnv"]["httpProxy"] == "http://u:p@h"
            wanted["meta"]["proxyEnv"]["httpProxy"] = "http://xxxxx:xxxxx@h"
        if kind == "source":
            attrs = wanted.get("attrs", {})
            for unstable in ("local.session", "local.unique"):
                attrs.pop(unstable, None)
            if not attrs:
                wanted.pop("attrs", None)
        assert name in (kind, "passthrough")
        assert enums(lower(body)) == enums(lower(wanted)), kind
        assert lower(own["constraints"]) == lower(expected["constraints"])
        assert lower(own.get("platform", {})) == lower(expected.get("platform", {}))


def test_steps_are_joined_by_their_numbers() -> None:
    output = graph()
    config = BuildSteps(output).config()
    listed = config["llbDefinition"]
    assert isinstance(listed, list)
    assert listed[-1] == {"id": "step7", "op": {"Op": {}}, "inputs": ["step6:0"]}
    assert listed[2]["inputs"] == ["step0:0", "step1:0"]
    assert "inputs" not in listed[0]
    mapping = config["digestMapping"]
    assert isinstance(mapping, dict)
    assert mapping[output.node.digest] == "step6"
    assert len(mapping) == 8


def test_places_are_those_of_the_dockerfile() -> None:
    source = BuildSteps(graph()).source()
    assert source == {
        "locations": {
            "step0": {"locations": [{"ranges": [{"start": {"line": 1}, "end": {"line": 1}}]}]},
            "step3": {
                "locations": [{"ranges": [{"start": {"line": 2}, "end": {"line": 2, "character": 5}}]}]
            },
        },
        "infos": [
            {
                "filename": "Dockerfile",
                "language": "Dockerfile",
                "data": base64.b64encode(FILE.text.encode()).decode(),
            }
        ],
    }
    bare = Output(Node(o.SourceOp("local://context", {})))
    assert BuildSteps(bare).source() is None
    with_definition = BuildSteps(graph()).source(bare)
    assert with_definition is not None
    infos = with_definition["infos"]
    assert isinstance(infos, list)
    assert [step["id"] for step in infos[0]["llbDefinition"]] == ["step0", "step1"]


def test_layers_are_told_where_all_are_known() -> None:
    output = graph()
    steps = BuildSteps(output)
    image = next(vertex for vertex, number in steps.numbers.items() if number == 0)
    outputs = {output.node.digest: [["a", "b"], ["c"]], image: [["a"]], "elsewhere": [["a"]]}
    blobs: dict[str, object] = {"a": {"digest": "A"}, "b": {"digest": "B"}}
    assert layer_chains(steps, outputs, blobs) == {
        "step0:0": [[{"digest": "A"}]],
        "step6:0": [[{"digest": "A"}, {"digest": "B"}]],
    }
