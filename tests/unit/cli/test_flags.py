"""Flags in Go's spelling, help in docker's layout, and the platforms of a table."""

from __future__ import annotations

import click
import pytest

from crossdock.cli.command import Flag, as_click, go_style
from crossdock.cli.help import FlagLine, format_flags
from crossdock.cli.platforms import platform_words, shorten
from crossdock.cli.table import align_columns, format_rows
from crossdock.cli.values import human_duration, human_size
from crossdock.errors import UsageError
from crossdock.image.platform import parse_platforms

PARAMS = [
    Flag("--push", kind="bool", is_flag=True),
    Flag("--rm/--no-rm", kind="bool", is_flag=True, default=True),
    Flag("-t", "--tag", kind="stringArray", multiple=True),
    Flag("-q", "--quiet", kind="bool", is_flag=True),
]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--push=true"], ["--push"]),
        (["--push=false", "."], ["."]),
        (["--rm=false"], ["--no-rm"]),
        (["-t=a"], ["-t", "a"]),
        (["-ta"], ["-ta"]),
        (["--tag=a"], ["--tag", "a"]),
        (["--tag", "--push=false"], ["--tag", "--push=false"]),
        (["-q=1", "-"], ["-q", "-"]),
        ([".", "--push=T", "--", "--push=false"], [".", "--push", "--", "--push=false"]),
        (["--other=x"], ["--other=x"]),
    ],
)
def test_go_spellings(args: list[str], expected: list[str]) -> None:
    assert go_style(args, PARAMS) == expected


def test_a_switch_with_another_value_is_refused() -> None:
    with pytest.raises(UsageError, match='invalid argument "maybe" for "-q, --quiet"'):
        go_style(["--quiet=maybe"], PARAMS)


def test_every_build_flag_of_buildx_is_there() -> None:
    from crossdock.cli.build import command

    flags = {p.long for p in as_click(command).params if isinstance(p, Flag) and not p.hidden}
    buildx = (
        "add-host allow annotation attest build-arg build-context cache-from cache-to call cgroup-parent check file "
        "iidfile label load metadata-file network no-cache no-cache-filter output platform policy progress provenance "
        "pull push quiet resource sbom secret shm-size ssh tag target ulimit"
    )
    ours = {"--explain"}
    assert flags - {"--builder", "--debug"} - ours == {f"--{name}" for name in buildx.split()}
    assert len(buildx.split()) == 35


def test_every_command_of_the_table_can_be_imported() -> None:
    from crossdock.cli.command import Globals
    from crossdock.cli.root import COMMANDS, make_root

    root = make_root()
    ctx = click.Context(root, info_name="crossdock", obj=Globals(program="crossdock", plugin=False))
    for name, sub in COMMANDS.items():
        if not sub.experimental:
            found = root.get_command(ctx, name)
            assert found is not None
            assert found.name == name
            assert (found.help or "").startswith(sub.short[:20]) or sub.hidden or name == "doctor", name


def test_flags_are_aligned_and_wrapped() -> None:
    text = format_flags(
        [
            FlagLine("-D", "--debug", "", "Enable debug logging"),
            FlagLine("", "--long-name", "string", "word " * 20),
        ]
    )
    lines = text.splitlines()
    assert lines[0] == "  -D, --debug              Enable debug logging"
    assert lines[1].startswith("      --long-name string   word word")
    assert lines[2].startswith(" " * 27 + "word")
    assert max(map(len, lines)) <= 79


@pytest.mark.parametrize(
    ("platforms", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64,linux/amd64/v2,linux/amd64/v3", "linux/amd64 (+3)"),
        (
            "linux/amd64,linux/arm64,linux/arm/v7,linux/arm/v6,linux/ppc64le,linux/s390x,linux/386,linux/riscv64",
            "linux/amd64, linux/arm64, linux/arm (+2), linux/ppc64le, (3 more)",
        ),
        ("linux/386,linux/riscv64", "linux/riscv64, linux/386"),
    ],
)
def test_platforms_are_shortened_as_buildx_does(platforms: str, expected: str) -> None:
    assert shorten(platform_words((), parse_platforms([platforms]))) == expected


def test_fixed_platforms_come_first_with_a_star() -> None:
    fixed, offered = parse_platforms(["linux/arm64"]), parse_platforms(["linux/amd64,linux/arm64"])
    assert platform_words(fixed, offered) == ["linux/arm64*", "linux/amd64"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (1536, "1.536kB"), (12345678, "12.35MB"), (5e12, "5TB")],
)
def test_human_sizes(size: float, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (61, "About a minute"),
        (150, "2 minutes"),
        (3700, "About an hour"),
        (7300, "2 hours"),
        (3 * 86400, "3 days"),
        (20 * 86400, "2 weeks"),
        (100 * 86400, "3 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_human_durations(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


def test_table_json_and_template_formats() -> None:
    rows = [{"Name": "a", "Size": "1B"}, {"Name": "longer", "Size": "22B"}]
    headers = {"Name": "NAME", "Size": "SIZE"}
    default = "table {{.Name}}\t{{.Size}}"
    assert format_rows("table", rows, default_table=default, headers=headers) == (
        "NAME     SIZE\na        1B\nlonger   22B\n"
    )
    assert format_rows("table {{.Size}}", rows, default_table=default, headers=headers) == "SIZE\n1B\n22B\n"
    assert format_rows("{{.Name}}", rows, default_table=default, headers=headers) == "a\nlonger\n"
    assert (
        format_rows("json", rows[:1], default_table=default, headers=headers) == '{"Name":"a","Size":"1B"}\n'
    )
    with pytest.raises(UsageError, match="Nope"):
        format_rows("{{.Nope}}", rows, default_table=default, headers=headers)


def test_the_last_column_is_not_padded() -> None:
    assert align_columns([("a", "b"), ("ccc", "d")]) == ["a   b", "ccc d"]
