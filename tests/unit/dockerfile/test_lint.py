"""Every build check: its own examples, switching off, and what makes findings errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from crossdock.dockerfile.lint import parse_check_options
from crossdock.dockerfile.lint.checks import looks_secret
from crossdock.dockerfile.lint.rules import RULES
from crossdock.errors import DockerfileError, UsageError
from support.dockerfiles import ARM64, Files, Images, build

if TYPE_CHECKING:
    from crossdock.dockerfile import LintWarning

FILES = Files({("context", ".dockerignore"): b"tmp\n"})
AMD64_ONLY = Images({"amd64-only": {"architecture": "amd64"}})


def findings(text: str, **options: Any) -> list[LintWarning]:
    """Return what the checks find; the build itself may fail afterwards."""
    warnings: list[LintWarning] = []
    try:
        build(text, warnings=warnings, files=FILES, images=AMD64_ONLY, **options)
    except DockerfileError as exc:
        if "lint violation" in str(exc):
            raise
    return warnings


def experimental(name: str, text: str) -> str:
    """Switch an experimental rule on."""
    return f"# check=experimental={name}\n{text}" if RULES[name].experimental else text


@pytest.mark.parametrize("name", RULES)
def test_a_rule_finds_its_bad_example_and_not_its_good_one(name: str) -> None:
    rule = RULES[name]
    found = [w for w in findings(experimental(name, rule.bad)) if w.rule == name]
    assert found
    assert found[0].where is not None
    assert found[0].description == rule.description
    assert name not in [w.rule for w in findings(experimental(name, rule.good))]


def test_the_rules_are_those_of_the_reference() -> None:
    assert len(RULES) == 22
    assert (
        RULES["JSONArgsRecommended"].url
        == "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/"
    )
    assert RULES["SecretsUsedInArgOrEnv"].slug == "secrets-used-in-arg-or-env"
    assert RULES["InvalidBaseImagePlatform"].url == ""


@pytest.mark.parametrize("name", [n for n in RULES if not RULES[n].experimental])
def test_a_rule_can_be_skipped_for_the_file(name: str) -> None:
    rules = [w.rule for w in findings(f"# check=skip={name}\n{RULES[name].bad}")]
    assert name not in rules
    assert not findings(f"# check=skip=all\n{RULES[name].bad}")


def test_a_rule_can_be_skipped_for_one_instruction() -> None:
    text = "FROM alpine\n# check=skip=JSONArgsRecommended\nCMD x\nENTRYPOINT y\n"
    assert [w.where.start.line for w in findings(text) if w.where] == [4]


def test_the_build_argument_beats_the_directive() -> None:
    text = "# check=skip=all\nFROM alpine\nCMD x\n"
    assert not findings(text)
    assert findings(text, build_args={"BUILDKIT_DOCKERFILE_CHECK": "skip=FromAsCasing"})


def test_experimental_rules_can_be_switched_on_by_build_argument() -> None:
    text = RULES["InvalidDefinitionDescription"].bad
    assert not findings(text)
    for value in ("all", "InvalidDefinitionDescription"):
        args = {"BUILDKIT_DOCKERFILE_CHECK_EXPERIMENTAL": value}
        assert [w.rule for w in findings(text, build_args=args)] == ["InvalidDefinitionDescription"]


def test_findings_can_be_errors_even_when_nobody_listens() -> None:
    text = "# check=error=true\nFROM alpine\nCMD x\nMAINTAINER y\n"
    with pytest.raises(
        DockerfileError, match="lint violation found for rules: MaintainerDeprecated, JSONArgs"
    ) as i:
        build(text)
    assert i.value.source is not None
    build("# check=error=true\nFROM alpine\n")


def test_findings_come_once_for_many_platforms() -> None:
    found = findings("FROM alpine\nCMD x\n", platforms=(ARM64, *(ARM64,) * 2))
    assert len(found) == 1


def test_the_short_form_names_the_line() -> None:
    (found,) = findings("FROM alpine\nCMD x\n")
    assert found.short.startswith("JSONArgsRecommended: JSON arguments recommended for CMD to prevent")
    assert found.short.endswith("(line 2)")


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("API_KEY", True),
        ("apikey", True),
        ("GITHUB_TOKEN", True),
        ("secret_MESSAGE", True),
        ("AUTH", True),
        ("MONKEY", False),
        ("PUBLIC_KEY", False),
        ("PASSWORD_FILE", False),
        ("TOKEN_VERSION", False),
        ("AUTHOR", False),
    ],
)
def test_names_that_look_like_credentials(name: str, secret: bool) -> None:
    assert looks_secret(name) is secret


def test_no_finding_shows_a_value() -> None:
    for found in findings("FROM alpine\nENV API_KEY=hunter2\n"):
        assert "hunter2" not in found.message


@pytest.mark.parametrize("text", ["skip", "foo=bar", "error=maybe", "=x"])
def test_wrong_check_options_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="check option"):
        parse_check_options(text)
    with pytest.raises(DockerfileError, match="failed to parse check options"):
        build(f"# check={text}\nFROM alpine\n")
    with pytest.raises(UsageError, match="BUILDKIT_DOCKERFILE_CHECK"):
        build("FROM alpine\n", build_args={"BUILDKIT_DOCKERFILE_CHECK": text})
