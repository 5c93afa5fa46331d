"""Finding emulators, and the platforms and packages that follow from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crossdock.distro import family, install_hint
from crossdock.emulation.architectures import by_name
from crossdock.emulation.host import wanted_architectures
from crossdock.emulation.platforms import native_variants
from crossdock.emulation.probes import probe_elf
from crossdock.emulation.qemu import QemuBinaries, QemuBinary
from crossdock.errors import UsageError
from crossdock.image.platform import local_platform

if TYPE_CHECKING:
    from pathlib import Path

HERE = local_platform().architecture


def static_program(path: Path) -> None:
    arch = by_name(HERE)
    assert arch is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(probe_elf(arch))
    path.chmod(0o755)


def found(monkeypatch: pytest.MonkeyPatch, **environ: Path | str) -> QemuBinaries:
    monkeypatch.setattr("crossdock.emulation.qemu._DIRECTORIES", ())
    return QemuBinaries.discover({name: str(value) for name, value in environ.items()})


@pytest.mark.parametrize("name", ["qemu-aarch64-static", "qemu-aarch64", "buildkit-qemu-aarch64"])
def test_every_usual_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    static_program(tmp_path / name)
    arm64 = by_name("arm64")
    assert arm64 is not None
    assert found(monkeypatch, PATH=tmp_path).get("arm64") == QemuBinary(arm64, str(tmp_path / name), True)


def test_our_own_variable_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    static_program(tmp_path / "mine/qemu-arm")
    static_program(tmp_path / "path/qemu-arm-static")
    binaries = found(monkeypatch, CROSSDOCK_QEMU_PATH=tmp_path / "mine", PATH=tmp_path / "path")
    binary = binaries.get("arm")
    assert binary is not None
    assert binary.path == str(tmp_path / "mine/qemu-arm")


def test_a_static_one_is_preferred_to_a_dynamic_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/qemu-s390x").symlink_to("/bin/sh")
    binaries = found(monkeypatch, PATH=tmp_path / "a")
    binary = binaries.get("s390x")
    assert binary is not None
    assert not binary.static
    assert binaries.static() == {}
    static_program(tmp_path / "b/qemu-s390x-static")
    assert list(found(monkeypatch, PATH=f"{tmp_path}/a:{tmp_path}/b").static()) == ["s390x"]


def test_nothing_found_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qemu-arm").write_text("not executable")
    assert found(monkeypatch, PATH=f"{tmp_path}:/no/such").get("arm") is None


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("qemu-aarch64 version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright\n", "7.2.22"),
        ("qemu-arm version 9.0.0\n", "9.0.0"),
        ("something else\n", ""),
    ],
)
def test_versions(tmp_path: Path, output: str, version: str) -> None:
    program = tmp_path / "qemu-arm"
    program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{output}EOF\n")
    program.chmod(0o755)
    arm = by_name("arm")
    assert arm is not None
    assert QemuBinary(arm, str(program), True).version() == version


def test_a_version_is_remembered_while_the_program_is_the_same(tmp_path: Path) -> None:
    program, memory, asked = tmp_path / "qemu-arm", tmp_path / "memory", tmp_path / "asked"
    arm = by_name("arm")
    assert arm is not None
    binary = QemuBinary(arm, str(program), True)

    def becomes(version: str) -> None:
        program.unlink(missing_ok=True)
        program.write_text(f"#!/bin/sh\necho >> {asked}\necho qemu-arm version {version}\n")
        program.chmod(0o755)

    def times_asked() -> int:
        return len(asked.read_text().splitlines())

    becomes("7.2.22")
    assert [binary.version(memory) for _ in range(3)] == ["7.2.22"] * 3
    assert times_asked() == 1
    becomes("9.0.10")
    assert [binary.version(memory) for _ in range(2)] == ["9.0.10"] * 2
    assert times_asked() == 2
    memory.write_bytes(b"\xff rubbish")
    assert binary.version(memory) == "9.0.10"
    assert binary.version(tmp_path / "no/such/folder") == "9.0.10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asked", "memory", "qemu-arm"]


def test_two_names_of_one_directory_are_looked_into_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    static_program(tmp_path / "usr/bin/qemu-arm")
    (tmp_path / "bin").symlink_to("usr/bin")
    binary = found(monkeypatch, PATH=f"{tmp_path}/bin:{tmp_path}/usr/bin").get("arm")
    assert binary is not None
    assert binary.path == str(tmp_path / "usr/bin/qemu-arm")


@pytest.mark.parametrize(
    ("flags", "levels"),
    [
        ("sse4_1", ()),
        ("cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3", ("v2",)),
        ("cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 abm avx avx2 bmi1 bmi2 f16c fma movbe xsave", ("v2", "v3")),
        ("abm avx avx2 bmi1 bmi2 f16c fma movbe xsave", ()),
    ],
)
def test_processor_levels(tmp_path: Path, flags: str, levels: tuple[str, ...]) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n")
    assert native_variants(tmp_path / "cpuinfo") == levels


OS_RELEASE = {
    "debian": ('ID=debian\nVERSION_ID="12"\n', "run `sudo apt-get install qemu-user-static`"),
    "ubuntu": ("ID=ubuntu\nID_LIKE=debian\n", "run `sudo apt-get install qemu-user-static`"),
    "fedora": ("ID=fedora\n", "run `sudo dnf install qemu-user-static`"),
    "rocky": ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "run `sudo dnf install qemu-user-static`"),
    "arch": ("ID=arch\n", "run `sudo pacman -S qemu-user-static`"),
    "alpine": ("ID=alpine\n", "run `sudo apk add qemu-s390x`"),
    "opensuse": (
        'ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n',
        "run `sudo zypper install qemu-linux-user`",
    ),
    "unknown": ("ID=plan9\n", "install qemu"),
}


@pytest.mark.parametrize("name", OS_RELEASE)
def test_packages_of_distributions(tmp_path: Path, name: str) -> None:
    text, hint = OS_RELEASE[name]
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text(text)
    assert install_hint("qemu", machine="s390x", root=tmp_path) == hint


def test_etc_wins_over_usr_lib_and_no_file_is_no_family(tmp_path: Path) -> None:
    assert family(tmp_path) == ""
    for folder, name in (("usr/lib", "arch"), ("etc", "alpine")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "os-release").write_text(f"ID={name}\n")
    assert family(tmp_path) == "alpine"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["s390x"], ["s390x"]),
        (["linux/arm/v7", "armhf"], ["arm"]),
        (["ppc64el", "qemu-mips64el"], ["ppc64le", "mips64le"]),
        (["riscv64", "s390x"], ["riscv64", "s390x"]),
    ],
)
def test_spellings_of_architectures(words: list[str], names: list[str]) -> None:
    assert [arch.name for arch in wanted_architectures(words)] == names


def test_all_is_all_but_our_own() -> None:
    names = [arch.name for arch in wanted_architectures(["all"])]
    assert HERE not in names
    assert len(names) == 18


def test_our_own_architecture_is_refused() -> None:
    with pytest.raises(UsageError, match="own architecture"):
        wanted_architectures([HERE])
    with pytest.raises(UsageError):
        wanted_architectures(["nonsense"])
