"""The part of Go's text/template that --format uses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.cli.template import Struct, Template
from crossdock.errors import UsageError

DATA: dict[str, Any] = Struct(
    Name="one",
    Size=3,
    On=True,
    Empty="",
    Labels={"a": "1", "b.c": "2"},
    Nodes=[Struct(Name="n0", Platforms=["x", "y"]), Struct(Name="n1", Platforms=[])],
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{.Name}}", "one"),
        ("a{{/* no */}}b", "ab"),
        ("{{json .Nodes}}", '[{"Name":"n0","Platforms":["x","y"]},{"Name":"n1","Platforms":[]}]'),
        ('{{.Name | upper | printf "<%s>"}}', "<ONE>"),
        ('{{range .Nodes}}{{.Name}}={{join .Platforms ","}};{{end}}', "n0=x,y;n1=;"),
        ("{{range $i, $n := .Nodes}}{{$i}}{{$n.Name}}{{end}}", "0n01n1"),
        ("{{range $k, $v := .Labels}}{{$k}}:{{$v}} {{end}}", "a:1 b.c:2 "),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{if .On}}yes{{else}}no{{end}}", "yes"),
        ("{{if not .On}}a{{else if eq .Size 3}}b{{else}}c{{end}}", "b"),
        ("{{with .Labels}}{{.a}}{{end}}", "1"),
        ("{{with $x := .Name}}{{$x}}-{{$.Size}}{{end}}", "one-3"),
        ("{{$x := .Size}}{{$x}}", "3"),
        ('{{index .Labels "b.c"}}', "2"),
        ("{{(index .Nodes 0).Name}}", "n0"),
        ("{{len .Nodes}}", "2"),
        ("{{.Labels.absent}}", "<no value>"),
        ("{{.Labels}}", "map[a:1 b.c:2]"),
        ("a {{- .Name -}} b", "aoneb"),
        ("{{and .On .Name}} {{or .Empty .Name}}", "one one"),
        ('{{printf "%q %d %5s|" .Name .Size .Name}}', '"one" 3   one|'),
        ("{{`raw`}}{{true}}{{1.5}}", "rawtrue1.5"),
    ],
)
def test_rendered(template: str, expected: str) -> None:
    assert Template(template).render(DATA) == expected


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{.Nope}}", "can't evaluate field Nope"),
        ("{{nope .Name}}", 'function "nope" not defined'),
        ("{{.Name", "unclosed action"),
        ("{{if .On}}x", "unexpected EOF"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{$y}}", "undefined variable"),
        ("{{.Name .Size}}", "is not a function"),
        ("{{index .Nodes 7}}", "error calling index"),
        ("{{(.Name}}", "unclosed left paren"),
        ("{{}}", "malformed"),
        ("{{if .On}}a{{else}}b", "unexpected EOF"),
    ],
)
def test_refused(template: str, why: str) -> None:
    with pytest.raises(UsageError, match="template parsing error") as caught:
        Template(template).render(DATA)
    assert why in caught.value.summary


@given(st.text(alphabet='{}.-| $"()ifrangeendelsewithN0', max_size=40))
def test_any_text_renders_or_is_refused(text: str) -> None:
    try:
        Template(text).render(DATA)
    except UsageError:
        return
