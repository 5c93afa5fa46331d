"""The marker and the leak check themselves can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import needs

pytest_plugins = ["pytester"]

_CONFTEST = """
from support import isolation
isolation.GRACE_S = 0.2
pytest_plugins = ["support.needs", "support.isolation"]
"""
_INI = """
[pytest]
markers = needs(*names)
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.delenv("REQUIRE", raising=False)
    tests = Path(needs.__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{tests}:{tests.parent / 'scripts'}")
    pytester.makeconftest(_CONFTEST)
    pytester.makeini(_INI)
    return pytester


def _run(suite: pytest.Pytester, source: str) -> pytest.RunResult:
    suite.makepyfile(source)
    return suite.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")


_IMPOSSIBLE = """
import pytest
from support import needs
needs.PROBES["moon"] = lambda: needs.Missing("a moon base")
needs.PROBES["other"] = lambda: needs.Missing("to be someone else", identity=True)
@pytest.mark.needs("{name}")
def test_it(): pass
"""


def test_a_missing_need_skips_with_its_reason(suite: pytest.Pytester) -> None:
    result = _run(suite, _IMPOSSIBLE.format(name="moon"))
    result.assert_outcomes(skipped=1)


def test_a_missing_need_fails_where_all_is_required(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUIRE", "all")
    result = _run(suite, _IMPOSSIBLE.format(name="moon"))
    result.stdout.fnmatch_lines(["*needs a moon base, and REQUIRE=all*"])
    assert result.ret == 1


def test_who_runs_the_suite_is_never_a_failure(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUIRE", "all")
    _run(suite, _IMPOSSIBLE.format(name="other")).assert_outcomes(skipped=1)


def test_an_unknown_need_is_refused(suite: pytest.Pytester) -> None:
    result = _run(suite, 'import pytest\n@pytest.mark.needs("crum")\ndef test_it(): pass\n')
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown needs*crum*"])


@pytest.mark.parametrize(
    ("leak", "said"),
    [
        (
            "open('/etc/passwd').__class__; import os; os.open('/etc/passwd', os.O_RDONLY)",
            "*file descriptor*passwd*",
        ),
        ("import subprocess; keep.append(subprocess.Popen(['sleep', '4']))", "*child process*sleep 4*"),
        (
            "import threading; threading.Thread(target=__import__('time').sleep, args=(4,), name='idler').start()",
            "*idler*",
        ),
        ("import pathlib; pathlib.Path.home().joinpath('dropped').touch()", "*dropped*"),
        ("import os; os.chdir('/')", "*working directory /*"),
    ],
    ids=["descriptor", "child", "thread", "file", "cwd"],
)
def test_what_a_case_leaves_behind_fails_it(suite: pytest.Pytester, leak: str, said: str) -> None:
    result = _run(suite, f"keep = []\ndef test_it():\n    {leak}\n")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines([said])
