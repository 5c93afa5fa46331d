"""What a cached build may cost at start-up: the modules it imports, and how many of their classes are dataclasses.

A dataclass takes ~0.6 ms to make, an unneeded module up to tens of milliseconds; the whole cached build should take
about 100 ms. Value classes are `record.Record` and `record.NamedTuple`, which cost next to nothing. When a case here fails, import lazily what the cached path does not need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay", "qemu", "binfmt")

#: top-level modules beyond those of a bare interpreter; each is needed
ALLOWED = frozenset(
    [
        # crossdock
        *("crossdock", "__future__"),
        # files, processes, the kernel
        *(
            "array",
            "contextlib",
            "contextvars",
            "_contextvars",
            "ctypes",
            "_ctypes",
            "errno",
            "fcntl",
            "pathlib",
            "fnmatch",
            "ntpath",
            "pwd",
            "resource",
        ),
        *(
            "select",
            "selectors",
            "signal",
            "socket",
            "_socket",
            "queue",
            "_queue",
            "threading",
            "heapq",
            "_heapq",
        ),
        *("bisect", "_bisect", "zlib", "math", "time", "stat", "_thread"),
        # values and text
        *(
            "base64",
            "binascii",
            "collections",
            "_collections",
            "copyreg",
        ),
        *(
            "datetime",
            "_datetime",
            "enum",
            "functools",
            "_functools",
            "_sha2",
            "_sha256",
        ),
        *(
            "importlib",
            "ipaddress",
            "itertools",
            "json",
            "_json",
            "keyword",
        ),
        *(
            "operator",
            "_operator",
            "re",
            "_sre",
            "reprlib",
            "struct",
            "_struct",
        ),
        *(
            "types",
            "typing",
            "_typing",
            "urllib",
            "weakref",
            "_weakref",
            "locale",
        ),
        *("_locale", "warnings", "textwrap", "stringprep", "unicodedata", "string"),
        # the store
        *("sqlite3", "_sqlite3"),
    ]
)
#: parts of Crossdock that a cached build must not load
FORBIDDEN = (
    "crossdock.bake",
    "crossdock.buildkit",
    "crossdock.server",
    "crossdock.imagetools",
    "crossdock.cli.help",
    "crossdock.cli.table",
    "crossdock.emulation",
    "crossdock.progress.tty",
    "crossdock.progress.rawjson",
    "crossdock.engine.sandbox.sandbox",
    "crossdock.engine.sources.pull",
    "crossdock.layers.extract",
    "crossdock.builders.drivers.buildkit",
    "crossdock.builders.dockerengine",
)
#: classes made by what compiles source text: `dataclasses`, `typing.NamedTuple`
COMPILED_CLASSES = 0
#: modules of Crossdock; each costs 0.15 ms even when it is small
MODULES = 193

SCRIPT = """
import sys
bare = set(sys.modules)
from crossdock.cli.main import run
code = run(sys.argv[2:], program="crossdock")
loaded = set(sys.modules) - bare
import json
from dataclasses import is_dataclass
classes = [
    f"{name}.{cls.__name__}" for name in loaded if name.startswith("crossdock")
    for cls in vars(sys.modules[name]).values()
    if isinstance(cls, type) and cls.__module__ == name != "crossdock.record"
    and (is_dataclass(cls) or (issubclass(cls, tuple) and cls.__mro__[1] is tuple and hasattr(cls, "_fields")))
]
with open(sys.argv[1], "w") as file:
    json.dump({"code": code, "modules": sorted(loaded), "classes": sorted(set(classes))}, file)
"""


@pytest.fixture
def loaded(crossdock: Crossdock, base: BaseImages, repository: str, tmp_path: Path) -> dict[str, list[str]]:
    """What the second of two equal builds, for two platforms with a push, has loaded at its end."""
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base.index} AS a\nRUN uname -m > /m\nFROM {base.index}\nCOPY --from=a /m /m\nCOPY Dockerfile /\nENV A=b\n"
    )
    args = [
        "build",
        str(tmp_path),
        "-t",
        f"{repository}:1",
        "--push",
        "--platform",
        "linux/amd64,linux/arm64",
    ]
    crossdock(*args).ok()
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, report, *args],
        env={**os.environ, **crossdock.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "CACHED" in done.stderr
    found: dict[str, list[str]] = json.loads(report.read_text())
    return found


def test_nothing_unlisted_is_imported(loaded: dict[str, list[str]]) -> None:
    # What the interpreter itself loads differs between installations: `encodings` and its like.
    tops = {name.partition(".")[0] for name in loaded["modules"]} - {
        "_distutils_hack",
        "encodings",
        "_weakrefset",
    }
    print("allowed but not loaded:", *sorted(ALLOWED - tops))
    assert tops - ALLOWED == set()
    assert [m for m in loaded["modules"] if m.startswith(FORBIDDEN)] == []


def test_no_class_is_compiled(loaded: dict[str, list[str]]) -> None:
    assert len(loaded["classes"]) <= COMPILED_CLASSES, loaded["classes"]


def test_the_number_of_modules_is_within_the_budget(loaded: dict[str, list[str]]) -> None:
    own = [name for name in loaded["modules"] if name.startswith("crossdock")]
    assert len(own) <= MODULES, own


def test_version_needs_click_alone(crossdock: Crossdock) -> None:
    code = "import sys; from crossdock.cli.main import run; run(['version'], program='x'); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()[-1]
    for heavy in ("sqlite3", "json", "crossdock.engine", "crossdock.builders", "rich", "crossdock.cli.build"):
        assert f"'{heavy}" not in modules
