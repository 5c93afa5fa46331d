"""Source policies: which sources rules find, what they make of them, and expressions that nobody can hang us with."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crossdock.buildkit.proto import policy_pb2
from crossdock.errors import SolveError, UsageError
from crossdock.image.platform import Platform
from crossdock.llb.graph import Node, Output, walk
from crossdock.llb.ops import ExecMeta, ExecOp, Mount, OpMetadata, SourceOp
from crossdock.llb.policy import PolicyDenied, SourcePolicies
from crossdock.llb.policyrules import Policy, parse_policy
from crossdock.llb.regex import LinearRegex, expand

ALPINE = "docker-image://docker.io/library/alpine:latest"
PINNED = ALPINE + "@sha256:" + "a" * 64


def policies(*rules: dict[str, Any]) -> SourcePolicies:
    return SourcePolicies([parse_policy(json.dumps({"version": 1, "rules": rules}).encode(), "policy.json")])


def rule(action: str, identifier: str, **more: Any) -> dict[str, Any]:
    selector = {"identifier": identifier, **more.pop("selector", {})}
    return {"action": action, "selector": selector, **more}


def evaluated(op: str, *rules: dict[str, Any], **attrs: str) -> str:
    return policies(*rules).evaluate(SourceOp(op, attrs)).identifier


class TestRules:
    @pytest.mark.parametrize(
        ("rules", "allowed"),
        [
            pytest.param([], True, id="no rule allows"),
            pytest.param([rule("DENY", ALPINE)], False, id="exact name"),
            pytest.param([rule("DENY", "docker-image://docker.io/library/alpine:*")], False, id="wildcard"),
            pytest.param([rule("DENY", "docker-image://*"), rule("ALLOW", ALPINE)], True, id="last wins"),
            pytest.param([rule("ALLOW", ALPINE), rule("DENY", "docker-image://*")], False, id="last denies"),
            pytest.param([rule("DENY", "docker-image://*/busybox*")], True, id="another image"),
            pytest.param([rule("DENY", "docker-image://docker.io/library/alp", selector={"match_type": "EXACT"})], True, id="exact is whole"),
            pytest.param([rule("DENY", r"^docker-image://.*:latest$", selector={"match_type": "REGEX"})], False, id="regex"),
            pytest.param([rule("DENY", "alpine", selector={"match_type": "REGEX"})], False, id="regex anywhere"),
            pytest.param([rule("DENY", "*", selector={"constraints": [{"key": "a", "value": "1"}]})], False, id="attribute equal"),
            pytest.param([rule("DENY", "*", selector={"constraints": [{"key": "a", "value": "1", "condition": "NOTEQUAL"}]})], True, id="attribute not equal"),
            pytest.param([rule("DENY", "*", selector={"constraints": [{"key": "b", "value": "1", "condition": "NOTEQUAL"}]})], False, id="missing attribute"),
            pytest.param([rule("DENY", "*", selector={"constraints": [{"key": "a", "value": "[0-9]", "condition": "MATCHES"}]})], False, id="attribute matches"),
        ],
    )  # fmt: skip
    def test_allow_and_deny(self, rules: list[dict[str, Any]], allowed: bool) -> None:
        if allowed:
            assert evaluated("docker-image://alpine", *rules, a="1") == (
                ALPINE if rules else "docker-image://alpine"
            )
            return
        with pytest.raises(PolicyDenied, match="denied by policy"):
            evaluated("docker-image://alpine", *rules, a="1")

    @pytest.mark.parametrize(
        ("one", "op", "wanted"),
        [
            pytest.param(rule("CONVERT", ALPINE, updates={"identifier": PINNED}), "docker-image://alpine", PINNED, id="pinned"),
            pytest.param(rule("CONVERT", "docker-image://docker.io/library/golang:*", updates={"identifier": "docker-image://docker.io/library/golang:${1}-x"}, selector={"constraints": [{"key": "done", "value": ""}]}) | {}, "docker-image://golang:1.19", None, id="wildcard without end"),
            pytest.param(rule("CONVERT", r"^docker-image://docker\.io/library/(.*)$", selector={"match_type": "REGEX"}, updates={"identifier": "docker-image://mirror.example/$1"}), "docker-image://alpine", "docker-image://mirror.example/alpine:latest", id="regex group"),
            pytest.param(rule("CONVERT", "https://a.example/*", updates={"identifier": "https://b.example/$1"}), "https://a.example/x/y", "https://b.example/x/y", id="wildcard capture"),
            pytest.param(rule("CONVERT", "git://a/b", selector={"match_type": "EXACT"}, updates={"identifier": "git://c/$1"}), "git://a/b", "git://c/$1", id="exact expands nothing"),
        ],
    )  # fmt: skip
    def test_convert(self, one: dict[str, Any], op: str, wanted: str | None) -> None:
        if wanted is None:
            with pytest.raises(SolveError, match="too many mutations"):
                evaluated(op, one)
            return
        assert evaluated(op, one) == wanted

    def test_attributes_are_set_and_others_kept(self) -> None:
        one = rule("CONVERT", "https://x/*", updates={"attrs": {"http.checksum": "sha256:1"}})
        changed = policies(one).evaluate(SourceOp("https://x/f", {"http.perm": "600"}))
        assert changed == SourceOp("https://x/f", {"http.perm": "600", "http.checksum": "sha256:1"})

    def test_what_was_converted_is_looked_at_again(self) -> None:
        rules = [
            rule("CONVERT", ALPINE, updates={"identifier": "docker-image://evil/x"}),
            rule("DENY", "docker-image://*/evil/*"),
        ]
        with pytest.raises(PolicyDenied, match="io/evil/x:latest"):
            evaluated("docker-image://alpine", *rules)

    def test_one_policy_cannot_allow_what_another_denies(self) -> None:
        first, second = (
            parse_policy(json.dumps({"rules": [r]}).encode(), "p")
            for r in (rule("DENY", ALPINE), rule("ALLOW", ALPINE))
        )
        for both in ([first, second], [second, first]):
            with pytest.raises(PolicyDenied):
                SourcePolicies(both).evaluate(SourceOp(ALPINE))

    def test_whoever_is_asked_comes_after_the_rules_and_before_them_again(self) -> None:
        asked: list[str] = []

        def ask(op: SourceOp, platform: Platform | None) -> SourceOp:
            assert platform == Platform("linux", "arm64")
            asked.append(op.identifier)
            return SourceOp("https://b/") if op.identifier == "https://a/" else op

        data = json.dumps({"rules": [rule("CONVERT", "https://0/", updates={"identifier": "https://a/"})]})
        made = SourcePolicies([parse_policy(data.encode(), "p")], ask)
        assert made.evaluate(SourceOp("https://0/"), Platform("linux", "arm64")).identifier == "https://b/"
        assert asked == ["https://a/", "https://b/"]
        assert made.evaluate(SourceOp("https://0/"), asking=False).identifier == "https://a/"

    def test_a_graph_keeps_all_but_its_sources(self) -> None:
        source = Output(Node(SourceOp("docker-image://alpine"), platform=Platform("linux", "amd64")))
        local = Output(Node(SourceOp("local://context")))
        op = ExecOp(
            meta=ExecMeta(args=("true",)),
            mounts=(Mount(dest="/", input=0, output=0), Mount(dest="/c", input=1)),
        )
        metadata = OpMetadata(description={"llb.customname": "step"})
        graph = Output(Node(op, [source, local], metadata=metadata))
        changed = policies(rule("CONVERT", ALPINE, updates={"identifier": PINNED})).apply(graph)
        assert changed is not None
        assert changed.node.metadata == metadata
        names = [n.op.identifier for n in walk([changed]) if isinstance(n.op, SourceOp)]
        assert names == [PINNED, "local://context"]
        assert changed.node.inputs[1].node is local.node
        again = policies(rule("CONVERT", ALPINE, updates={"identifier": PINNED})).apply(changed)
        assert again is not None
        assert again.node.digest == changed.node.digest

    def test_a_denied_vertex_is_named(self) -> None:
        node = Node(
            SourceOp(ALPINE), metadata=OpMetadata(description={"llb.customname": "[1/2] FROM alpine"})
        )
        with pytest.raises(PolicyDenied) as caught:
            policies(rule("DENY", ALPINE)).apply(Output(node))
        assert (caught.value.vertex, caught.value.vertex_name) == (node.digest, "[1/2] FROM alpine")


class TestFiles:
    @pytest.mark.parametrize(
        ("data", "match"),
        [
            ('{"rules":[{"action":"PERHAPS","selector":{"identifier":"*"}}]}', "unknown action"),
            ('{"rules":[{"action":"DENY"}]}', "no selector"),
            ('{"rules":[{"action":"DENY","selector":{"identifier":"*","match_typ":"EXACT"}}]}', "not known: match_typ"),
            ('{"rules":[7]}', "an object is wanted"),
            ('{"rules":7}', "not of the form"),
            ('["rules"]', "an object is wanted"),
            ('{"rules":', "failed to parse"),
        ],
    )  # fmt: skip
    def test_a_wrong_file_is_named(self, data: str, match: str) -> None:
        with pytest.raises(UsageError, match=match) as caught:
            parse_policy(data.encode(), "my-policy.json")
        assert "my-policy.json" in caught.value.summary

    @pytest.mark.parametrize(
        ("one", "match"),
        [
            (rule("DENY", "a**b"), "wildcard"),
            (rule("DENY", "(", selector={"match_type": "REGEX"}), "invalid regular expression"),
            (rule("CONVERT", "*"), "converts"),
        ],
    )
    def test_a_wrong_rule_is_named(self, one: dict[str, Any], match: str) -> None:
        with pytest.raises(UsageError, match=match):
            evaluated(ALPINE, one)

    def test_both_forms_mean_the_same(self) -> None:
        rules = [
            rule("CONVERT", ALPINE, updates={"identifier": PINNED, "attrs": {"k": "v"}}),
            rule("DENY", "x", selector={"match_type": "REGEX", "constraints": [{"key": "a", "value": "b", "condition": "MATCHES"}]}),
        ]  # fmt: skip
        made = parse_policy(json.dumps({"version": 1, "rules": rules}).encode(), "p")
        data = made.to_bytes()
        assert parse_policy(data, "p") == Policy.from_bytes(data) == made
        message = policy_pb2.Policy.FromString(data)
        assert message.rules[1].selector.constraints[0].condition == policy_pb2.MATCHES
        assert message.rules[0].updates.attrs["k"] == "v"

    @given(st.binary(max_size=60))
    def test_rubbish_is_refused_or_read(self, data: bytes) -> None:
        try:
            Policy.from_bytes(data)
        except (UsageError, SolveError):
            return


class TestRegex:
    @given(st.text("ab(|)*+?.[]{}^$1,-", max_size=8), st.text("ab\n", max_size=6))
    @example("[[]", "[")
    @example("[--a]", "-")
    def test_what_is_accepted_means_what_it_means_to_python(self, pattern: str, text: str) -> None:
        try:
            ours = LinearRegex(pattern)
        except UsageError:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            theirs = re.compile(pattern.replace("$", r"\Z") if "[" not in pattern else pattern)
        if "$" in pattern and "[" in pattern:
            return
        found, wanted = ours.search(text), theirs.search(text)
        # Of groups in repeated nothing both have an opinion; the whole match is what counts.
        assert (None if found is None else found[0]) == (None if wanted is None else wanted[0])

    @pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*c", "(a|aa)+$", "(.*)(.*)(.*)(.*)(.*)x"])
    def test_no_expression_takes_forever(self, pattern: str) -> None:
        assert LinearRegex(pattern).search("a" * 300 + "b") is None

    @pytest.mark.parametrize("pattern", ["(?=a)", "(?!a)", "(?<=a)b", r"(a)\1", "(?>a)", "a++", "a{5000}", "((a{900}){900})", "(?:(?:(?:){900}){900}){900}", "[[:alpha:]]", r"\pL", "(" * 500])  # fmt: skip
    def test_what_is_not_supported_is_refused(self, pattern: str) -> None:
        with pytest.raises(UsageError):
            LinearRegex(pattern)

    @pytest.mark.parametrize(
        ("pattern", "text", "template", "wanted"),
        [
            ("x*", "abxd", "-", "-a-b-d-"),
            ("a(b)", "abab", "<$1$$>", "<b$><b$>"),
            ("(?P<n>a)", "a", "${n}1 $n1", "a1 "),
            ("^a", "aa", "b", "ba"),
        ],
    )
    def test_replacing(self, pattern: str, text: str, template: str, wanted: str) -> None:
        assert LinearRegex(pattern).replace_all(text, template) == wanted

    def test_expansion_of_what_there_is_not(self) -> None:
        assert expand("$9 ${x} $0", ["w"], {}) == "  w"
