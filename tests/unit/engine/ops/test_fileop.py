"""What a file op is keyed by, what it reads of its inputs, and which actions share a layer."""

from __future__ import annotations

from typing import Any

import pytest

from crossdock.engine.cache.select import Selector
from crossdock.engine.ops.fileop import FileSolverOp, Plan, Step, plan
from crossdock.errors import SolveError
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import (
    ChownOpt,
    FileAction,
    FileActionCopy,
    FileActionMkDir,
    FileActionMkFile,
    FileActionRm,
    FileOp,
    NamedUser,
    SourceOp,
)
from crossdock.record import replace

ANY = FileActionMkDir(path="/x")


def act(action: Any = ANY, *, at: Any = -1, secondary: Any = -1, output: Any = -1) -> Any:
    return FileAction(action=action, input=at, secondary_input=secondary, output=output)


PLANS = {
    "one action": ([act(output=0)], 0, Plan((Step(-1, (0,)),), (0,))),
    "a chain is one layer": (
        [act(at=0), act(at=1), act(at=2, output=0)],
        1,
        Plan((Step(0, (0, 1, 2)),), (2,)),
    ),
    "an output in the middle begins another layer": (
        [act(at=0, output=0), act(at=1, output=1)],
        1,
        Plan((Step(0, (0,)), Step(1, (1,))), (0, 1)),
    ),
    "a state copied from is finished first": (
        [act(), act(ANY, at=-1), act(ANY, at=1, secondary=0, output=0)],
        0,
        Plan((Step(-1, (0,)), Step(-1, (1, 2))), (2,)),
    ),
    "a state used twice is finished first": (
        [act(), act(at=0, output=0), act(at=0, output=1)],
        0,
        Plan((Step(-1, (0,)), Step(0, (1,)), Step(0, (2,))), (1, 2)),
    ),
}


@pytest.mark.parametrize(("actions", "inputs", "expected"), PLANS.values(), ids=PLANS.keys())
def test_plan(actions: Any, inputs: Any, expected: Any) -> None:
    assert plan(actions, inputs) == expected


@pytest.mark.parametrize(
    "actions",
    [[act()], [act(output=1)], [act(output=0), act(output=0)]],
    ids=["no output", "output 0 missing", "an output twice"],
)
def test_bad_outputs(actions: Any) -> None:
    with pytest.raises(SolveError, match="output"):
        plan(actions, 0)


def source(name: Any = "a") -> Any:
    return Output(Node(SourceOp(f"local://{name}")))


def op(*actions: Any, inputs: Any = 2) -> Any:
    env: Any = None
    return FileSolverOp(Node(FileOp(actions), [source(str(n)) for n in range(inputs)]), env)


COPY = FileActionCopy(src="/dir/file", dest="/to/", create_dest_path=True)


def key(action: Any, inputs: Any = 2) -> Any:
    return op(act(action, at=0, secondary=1, output=0), inputs=inputs).cache_map(None)


def test_an_index_that_is_no_input_is_refused() -> None:
    with pytest.raises(SolveError, match="uses 7"):
        op(act(at=7, output=0))


def test_an_op_without_actions_is_refused() -> None:
    with pytest.raises(SolveError, match="no actions"):
        op()


def test_the_directory_of_a_copied_path_is_left_to_its_content() -> None:
    assert key(COPY).digest == key(replace(COPY, src="/other/file")).digest
    assert key(COPY).inputs != key(replace(COPY, src="/other/file")).inputs


CHANGES = {
    "the name": {"src": "/dir/other"},
    "the destination": {"dest": "/to"},
    "the mode": {"mode": 0o600},
    "the symbolic mode": {"mode_str": "u+x"},
    "the owner": {"owner": ChownOpt(user=5)},
    "the owner's name": {"owner": ChownOpt(user=NamedUser("bob", 0))},
    "following links": {"follow_symlink": True},
    "contents": {"dir_copy_contents": True},
    "unpacking": {"attempt_unpack": True},
    "wildcards": {"allow_wildcard": True},
    "the time": {"timestamp_ns": 5},
    "included": {"include_patterns": ("x",)},
    "excluded": {"exclude_patterns": ("x",)},
    "required": {"required_paths": ("x",)},
    "replacing": {"always_replace_existing_dest_paths": True},
    "making parents": {"create_dest_path": False},
    "empty wildcards": {"allow_empty_wildcard": True},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_changes_the_key_of_a_copy(change: Any) -> None:
    assert key(COPY).digest != key(replace(COPY, **change)).digest


def test_what_is_only_read_is_keyed_by_content_and_what_is_changed_is_not() -> None:
    made = op(act(COPY, at=0, secondary=1, output=0))
    assert [k.content for k in made.cache_map(None).inputs] == [False, True]
    assert made.selectors() == {1: [Selector("/dir/file")]}


def test_an_owner_by_name_reads_the_user_files_of_its_input() -> None:
    owned = replace(COPY, owner=ChownOpt(user=NamedUser("bob", 1), group=NamedUser("staff", 1)))
    chosen = op(act(owned, at=0, secondary=1, output=0)).selectors()[1]
    assert [s.path for s in chosen] == ["/etc/passwd", "/etc/group", "/dir/file"]


def test_an_owner_from_the_changed_input_needs_no_content() -> None:
    owned = replace(COPY, owner=ChownOpt(user=NamedUser("bob", 0)))
    assert op(act(owned, at=0, secondary=1, output=0)).selectors().keys() == {1}


def test_copying_from_an_earlier_action_keeps_the_whole_path_in_the_key() -> None:
    def made(src: Any) -> Any:
        first = act(FileActionMkFile(path="/f", data=b"x"))
        return op(first, act(replace(COPY, src=src), at=0, secondary=2, output=0)).cache_map(None).digest

    assert made("/a/f") != made("/b/f")


def test_kinds_of_actions_do_not_collide() -> None:
    keys = {
        op(act(a, at=0, output=0)).cache_map(None).digest
        for a in (
            FileActionMkDir(path="/x"),
            FileActionMkDir(path="/x", make_parents=True),
            FileActionMkFile(path="/x", data=b""),
            FileActionMkFile(path="/x", data=b"", mode=0o600),
            FileActionRm(path="/x"),
            FileActionRm(path="/x", allow_wildcard=True),
        )
    }
    assert len(keys) == 6
