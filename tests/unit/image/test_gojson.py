from __future__ import annotations

import json
import os

from crossdock.image import ImageConfig, Platform, gojson


def test_what_go_escapes_is_escaped() -> None:
    assert gojson.dumps({"a": "<x> && \u2028é"}) == '{"a":"\\u003cx\\u003e \\u0026\\u0026 \\u2028é"}'.encode()
    assert gojson.dumps({"a": [1]}, indent=2) == b'{\n  "a": [\n    1\n  ]\n}'


def test_text_that_is_not_utf_8_becomes_a_replacement_character() -> None:
    assert gojson.dumps(os.fsdecode(b"a\xffb")) == '"a\ufffdb"'.encode()


def test_configs_are_written_so() -> None:
    raw = ImageConfig(platform=Platform("linux", "amd64"), cmd=["sh", "-c", "a && b"]).to_json()
    assert b"a \\u0026\\u0026 b" in raw
    assert json.loads(raw)["config"]["Cmd"][2] == "a && b"
