"""Devices described for containers: what is read, what a step may have, and what it is given."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.engine.sandbox.cdi import (
    CdiOptions,
    ContainerEdits,
    DeviceGrants,
    DeviceMount,
    DeviceRegistry,
    _parse,
)
from crossdock.engine.sandbox.devices import device_mounts, edit_spec
from crossdock.errors import SandboxError, SolveError, UsageError
from crossdock.llb.ops import CdiDevice

if TYPE_CHECKING:
    from pathlib import Path

KIND = "example.com/gpu"
SPEC: dict[str, Any] = {
    "cdiVersion": "0.6.0",
    "kind": KIND,
    "containerEdits": {"env": ["COMMON=1"]},
    "devices": [
        {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/null"}], "env": ["NUMBER=0"]}},
        {
            "name": "1",
            "annotations": {"org.mobyproject.buildkit.device.class": "fast"},
            "containerEdits": {
                "mounts": [{"hostPath": "/etc", "containerPath": "/host/etc", "options": ["ro"]}]
            },
        },
    ],
}


def described(folder: Path, spec: object = SPEC, name: str = "gpu.json", **options: Any) -> DeviceRegistry:
    (folder / name).write_text(spec if isinstance(spec, str) else json.dumps(spec))
    return DeviceRegistry(CdiOptions((str(folder / "none"), str(folder)), **options))


def selected(registry: DeviceRegistry, *names: str, allow: tuple[str, ...] = ("device",)) -> list[str]:
    found = registry.select([CdiDevice(name) for name in names], DeviceGrants(allow))
    return [device.name for device in found]


class TestSelecting:
    @pytest.mark.parametrize(
        ("name", "wanted"),
        [
            (f"{KIND}=1", [f"{KIND}=1"]),
            (f"{KIND}=*", [f"{KIND}=0", f"{KIND}=1"]),
            (KIND, [f"{KIND}=0"]),
            ("fast", [f"{KIND}=1"]),
        ],
    )
    def test_by_name_kind_and_class(self, tmp_path: Path, name: str, wanted: list[str]) -> None:
        assert selected(described(tmp_path), name) == wanted

    def test_a_missing_one_is_named_with_what_there_is(self, tmp_path: Path) -> None:
        registry = described(tmp_path)
        with pytest.raises(
            SolveError, match=r'required device "example.com/gpu=7" is not registered'
        ) as caught:
            selected(registry, f"{KIND}=7")
        assert f"{KIND}=0, {KIND}=1" in (caught.value.hint or "")
        optional = CdiDevice("nothing/like=it", optional=True)
        assert registry.select([optional], DeviceGrants(())) == []

    @pytest.mark.parametrize(
        ("allow", "allowed"),
        [
            ((), False),
            (("network.host",), False),
            (("device",), True),
            ((f"device={KIND}=0",), True),
            ((f"device={KIND}=1",), False),
            ((f"device={KIND}",), True),
            (("device=fast",), False),
        ],
    )
    def test_a_device_must_be_allowed(self, tmp_path: Path, allow: tuple[str, ...], allowed: bool) -> None:
        registry = described(tmp_path)
        if allowed:
            assert selected(registry, f"{KIND}=0", allow=allow) == [f"{KIND}=0"]
            return
        with pytest.raises(SolveError, match="requested by the build but not allowed") as caught:
            selected(registry, f"{KIND}=0", allow=allow)
        assert caught.value.hint == f"allow it with --allow device={KIND}=0"

    def test_an_alias_leads_to_the_device_it_was_given_for(self, tmp_path: Path) -> None:
        allow = (f"device={KIND}=1,alias=builds/gpu=any",)
        assert selected(described(tmp_path), "builds/gpu=any", allow=allow) == [f"{KIND}=1"]

    @pytest.mark.parametrize("auto", [KIND, f"{KIND}=0"])
    def test_the_daemon_may_allow_for_all(self, tmp_path: Path, auto: str) -> None:
        registry = described(tmp_path, auto_allowed=(auto,))
        assert selected(registry, f"{KIND}=0", allow=()) == [f"{KIND}=0"]

    def test_the_description_may_allow_for_all(self, tmp_path: Path) -> None:
        spec = {**SPEC, "annotations": {"org.mobyproject.buildkit.device.autoallow": "true"}}
        assert selected(described(tmp_path, spec), f"{KIND}=0", allow=()) == [f"{KIND}=0"]

    def test_when_switched_off_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(SolveError) as caught:
            selected(described(tmp_path, disabled=True), KIND)
        assert "switched off" in (caught.value.hint or "")

    def test_a_changed_file_is_read_again(self, tmp_path: Path) -> None:
        registry = described(tmp_path)
        assert len(registry.all()) == 2
        described(tmp_path, {**SPEC, "devices": [{"name": "only-one"}]})
        assert [device.name for device in registry.all()] == [f"{KIND}=only-one"]

    @pytest.mark.parametrize("text", ["device=x,name=y", "device=x,alias="])
    def test_a_malformed_grant_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="unknown option"):
            DeviceGrants([text])


class TestReading:
    def test_yaml_is_read(self, tmp_path: Path) -> None:
        text = f"cdiVersion: 0.5.0\nkind: {KIND}\ndevices:\n- name: all\n  containerEdits:\n    env: [A=b]\n"
        (device,) = described(tmp_path, text, "gpu.yaml").all()
        assert (device.name, device.edits.env) == (f"{KIND}=all", ("A=b",))

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"kind": "gpu"}, "not of the form vendor/class"),
            ({"surprise": 1}, "has 'surprise'"),
            ({"devices": [{"name": "a b"}]}, "invalid device name"),
            ({"devices": {}}, "not a list"),
            ({"devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "dev/x"}]}}]}, "absolute path"),
            ({"devices": [{"name": "0", "containerEdits": {"hooks": [{"hookName": "x", "path": "/x"}]}}]}, "unknown hook"),
            ({"devices": [{"name": "0", "containerEdits": {"env": ["A"]}}]}, "NAME=VALUE"),
            ({"devices": [{"name": "0", "containerEdits": {"additionalGids": [True]}}]}, "not a number"),
        ],
    )  # fmt: skip
    def test_a_malformed_file_is_named_where_a_device_is_missed(
        self, tmp_path: Path, change: dict[str, Any], why: str
    ) -> None:
        described(tmp_path, {**SPEC, "kind": "other.com/x"}, "good.json")
        registry = described(tmp_path, {**SPEC, **change}, "bad.json")
        assert {device.kind for device in registry.all()} == {"other.com/x"}
        with pytest.raises(SolveError) as caught:
            selected(registry, f"{KIND}=0")
        assert "bad.json" in (caught.value.detail or "")
        assert why in (caught.value.detail or "")

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["kind", "devices", "name", "containerEdits", "env", "mounts", "x"]),
                    inner,
                    max_size=4,
                )
            ),
        )
    )
    def test_rubbish_is_refused_or_read(self, document: object) -> None:
        try:
            _parse(document, ())
        except UsageError:
            return


class TestGiving:
    def test_what_is_not_there_is_named(self) -> None:
        edits = ContainerEdits(mounts=(DeviceMount("/dev/no-such-device", "/dev/gpu"),))
        with pytest.raises(SandboxError, match="/dev/no-such-device"):
            list(device_mounts([edits]))

    def test_two_devices_mount_what_they_share_once(self) -> None:
        shared = ContainerEdits(mounts=(DeviceMount("/etc", "/x"),))
        assert len(list(device_mounts([shared, shared]))) == 1

    def test_variables_groups_and_hooks_reach_the_spec(self, tmp_path: Path) -> None:
        hook = {"hookName": "createContainer", "path": "/bin/true", "args": ["true", "x"], "timeout": 3}
        edits = {"env": ["A=2"], "additionalGids": [44, 44], "hooks": [hook]}
        registry = described(tmp_path, {**SPEC, "devices": [{"name": "0", "containerEdits": edits}]})
        spec: dict[str, Any] = {"process": {"env": ["A=1", "B=1"], "user": {"uid": 0, "gid": 0}}}
        edit_spec(spec, [device.edits for device in registry.all()])
        assert spec["process"]["env"] == ["B=1", "COMMON=1", "A=2"]
        assert spec["process"]["user"]["additionalGids"] == [44]
        assert spec["hooks"] == {
            "createContainer": [{"path": "/bin/true", "args": ["true", "x"], "timeout": 3}]
        }
