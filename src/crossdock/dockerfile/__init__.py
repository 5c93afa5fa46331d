"""Dockerfiles: text to syntax tree to LLB, build checks and the information sub-requests.

Not for: running anything (``crossdock.engine``), or fetching images and contexts (the callers satisfy protocols).
"""

from crossdock.dockerfile.contexts import (
    ContextSpec,
    GitContext,
    HttpContext,
    ImageContext,
    InputContext,
    LocalContext,
    OciLayoutContext,
    parse_context,
)
from crossdock.dockerfile.convert import convert
from crossdock.dockerfile.convert.options import (
    ContextFiles,
    ConvertOptions,
    ImageResolver,
    PlatformResult,
    ResolvedImage,
    SourceTimes,
)
from crossdock.dockerfile.lint import LintWarning
from crossdock.dockerfile.parser import parse
from crossdock.dockerfile.tree import Dockerfile, Stage

__all__ = [
    "ContextFiles",
    "ContextSpec",
    "ConvertOptions",
    "Dockerfile",
    "GitContext",
    "HttpContext",
    "ImageContext",
    "ImageResolver",
    "InputContext",
    "LintWarning",
    "LocalContext",
    "OciLayoutContext",
    "PlatformResult",
    "ResolvedImage",
    "SourceTimes",
    "Stage",
    "convert",
    "parse",
    "parse_context",
]
