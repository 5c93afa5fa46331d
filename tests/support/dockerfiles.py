"""What a Dockerfile conversion needs from outside, invented: images and context files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crossdock.dockerfile import ConvertOptions, convert, parse
from crossdock.errors import NotFoundError
from crossdock.image.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.dockerfile import LintWarning, PlatformResult

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")
DIGEST = "sha256:" + "a" * 64


@dataclass(frozen=True)
class Image:
    """A resolved image."""

    ref: str
    digest: str
    config: bytes


@dataclass
class Images:
    """Images by familiar name; those not listed exist too, with a plain config, unless ``strict``."""

    configs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    strict: bool = False
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def resolve_image(self, ref: str, *, platform: Platform, mode: str, log_name: str) -> Image:
        """Give the image for whatever platform is asked."""
        self.asked.append((ref, str(platform), log_name))
        name = ref.removeprefix("docker.io/library/").removesuffix(":latest")
        if name not in self.configs and self.strict:
            summary = f"{ref}: not found"
            raise NotFoundError(summary, host="docker.io")
        given = self.configs.get(name, {})
        config = {
            "architecture": platform.architecture,
            "os": platform.os,
            "config": {"Env": ["PATH=/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "1" * 64]},
            "history": [{"created_by": "base"}],
            **given,
        }
        return Image(ref, DIGEST, json.dumps(config).encode())

    def resolve_oci_layout(self, ref: str, *, store: str, platform: Platform, log_name: str) -> Image:
        """Give the same images."""
        return self.resolve_image(ref, platform=platform, mode=store, log_name=log_name)


@dataclass
class Files:
    """Context files by (local, path)."""

    files: Mapping[tuple[str, str], bytes] = field(default_factory=dict)

    def read_file(self, path: str, *, local: str = "context") -> bytes | None:
        """Return the file."""
        return self.files.get((local, path))


def build(
    text: str | bytes,
    *,
    images: Images | None = None,
    files: Files | None = None,
    warnings: list[LintWarning] | None = None,
    name: str = "Dockerfile",
    **options: Any,
) -> list[PlatformResult]:
    """Parse and convert, for linux/amd64 when no platforms are given."""
    options.setdefault("platforms", (AMD64,))
    options.setdefault("build_platforms", (AMD64,))
    data = text.encode() if isinstance(text, str) else text
    return convert(
        parse(data, name),
        ConvertOptions(**options),
        images=images or Images(),
        context=files or Files(),
        warn=warnings.append if warnings is not None else None,
    )
