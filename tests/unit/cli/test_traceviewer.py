"""The page that shows traces: what it serves, where, and until when."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request

import pytest

from crossdock.cancel import CancelToken
from crossdock.cli.traceviewer import TraceViewer
from crossdock.errors import UsageError

A, B = {"data": [{"traceID": "aa", "spans": []}]}, {"data": [{"traceID": "bb", "spans": []}]}


def test_one_page_and_the_traces_until_cancelled() -> None:
    cancel = CancelToken()
    viewer = TraceViewer("127.0.0.1:0", {"aa": A, "bb": B})
    thread = threading.Thread(target=viewer.serve, args=(cancel,))
    thread.start()
    try:
        base, _, names = viewer.url.partition("/trace/")
        assert names == "aa...bb"
        answer = urllib.request.urlopen(viewer.url, timeout=10)
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        assert b"<script>" in answer.read()
        assert json.load(urllib.request.urlopen(f"{base}/api/traces/bb", timeout=10)) == B
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{base}/../../etc/passwd", timeout=10)
    finally:
        cancel.cancel()
        thread.join()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(viewer.url, timeout=10)


def test_addresses_that_cannot_be_listened_at() -> None:
    for address in ("nowhere", "127.0.0.1:port"):
        with pytest.raises(UsageError, match="invalid address"):
            TraceViewer(address, {"aa": A})
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="cannot listen at"):
        TraceViewer(f"127.0.0.1:{taken.getsockname()[1]}", {"aa": A})
