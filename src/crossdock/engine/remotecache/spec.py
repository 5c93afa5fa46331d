"""``--cache-from`` and ``--cache-to`` as given, checked before anything is built.

Spec: BuildKit README "Cache"; docker/buildx ``util/buildflags/cache.go``, ``build/opt.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import UsageError
from crossdock.layers.compression import COMPRESSION_ATTRS, Compression, parse_bool
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crossdock.engine.remotecache.backend import Backend
    from crossdock.engine.remotecache.place import Surroundings

__all__ = ["INLINE", "CacheSpec", "ExportOptions", "active", "check_caches", "make_backend", "merge_options"]

INLINE = "inline"

_MOUNTS = frozenset({"mounts", "mounts-max-size"})
_EXPORT = frozenset({"mode", "ignore-error", "merge", "max-results"}) | COMPRESSION_ATTRS | _MOUNTS
_TYPES_OF_MANIFEST = frozenset({"image-manifest", "oci-mediatypes"})
_OBJECT = frozenset({"prefix", "blobs_prefix", "manifests_prefix", "name"})
_S3 = _OBJECT | {
    "bucket",
    "region",
    "endpoint_url",
    "use_path_style",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "touch_refresh",
    "upload_parallelism",
    "disable_accept_encoding",
    "retry_mode",
    "retry_max_attempts",
}
_AZBLOB = _OBJECT | {"account_url", "account_name", "container", "secret_access_key"}
_GHA = frozenset({"url", "url_v2", "token", "version", "scope", "timeout", "repository", "ghtoken"})

#: type -> keys of imports, further keys of exports
_KEYS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    INLINE: (frozenset(), frozenset()),
    "registry": (frozenset({"ref", "registry.insecure"}), _TYPES_OF_MANIFEST),
    "local": (frozenset({"src", "tag", "digest"}), frozenset({"dest", "reset"}) | _TYPES_OF_MANIFEST),
    "gha": (_GHA, frozenset()),
    "s3": (_S3, frozenset()),
    "azblob": (_AZBLOB, frozenset()),
}

#: type -> module and class
_BACKENDS = {
    "registry": ("registry", "RegistryBackend"),
    "local": ("local", "LocalBackend"),
    "gha": ("gha", "GhaBackend"),
    "s3": ("s3", "S3Backend"),
    "azblob": ("azblob", "AzureBackend"),
}


class CacheSpec(NamedTuple):
    """One ``--cache-from`` or ``--cache-to``."""

    type: str
    attrs: Mapping[str, str]
    #: makes the backend instead of the type's own: for a directory that is not of this machine
    make: Callable[[Mapping[str, str]], Backend] | None = None


class ExportOptions(NamedTuple):
    """What all exports have."""

    #: steps whose layers are not in the result too
    max: bool
    ignore_error: bool
    compression: Compression
    #: keep what is there from other builds
    merge: bool
    #: results of other builds that are kept
    max_results: int
    #: cache mounts too, each up to so many bytes; 0 for any
    mounts: bool
    mounts_max_size: int

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, str]) -> ExportOptions:
        """Read the options. Raises: UsageError, NotSupported."""
        mode = attrs.get("mode", "min")
        if mode not in ("min", "max"):
            summary = f"unknown cache export mode {mode!r}"
            raise UsageError(summary, hint="use mode=min or mode=max")
        merge, max_results = merge_options(attrs)
        return cls(
            max=mode == "max",
            ignore_error=_flag(attrs, "ignore-error"),
            compression=Compression.from_attrs(attrs),
            merge=merge,
            max_results=max_results,
            mounts=_flag(attrs, "mounts"),
            mounts_max_size=parse_size("mounts-max-size", attrs.get("mounts-max-size", "0")),
        )


def merge_options(attrs: Mapping[str, str]) -> tuple[bool, int]:
    """Read ``merge`` and ``max-results``. Raises: UsageError."""
    return _flag(attrs, "merge", default=True), _number(attrs, "max-results", 400)


def active(specs: Sequence[CacheSpec], environ: Mapping[str, str]) -> list[CacheSpec]:
    """Fill in what the environment knows; leave out what cannot be meant here (``gha`` outside of GitHub Actions)."""
    found = []
    for spec in specs:
        attrs = dict(spec.attrs)
        if spec.type == "gha":
            _fill_gha(attrs, environ)
            if not attrs.get("token") or not (attrs.get("url") or attrs.get("url_v2")):
                continue
        found.append(spec._replace(attrs=attrs))
    return found


def _fill_gha(attrs: dict[str, str], environ: Mapping[str, str]) -> None:
    v2 = environ.get("ACTIONS_CACHE_SERVICE_V2", "")
    if "version" not in attrs and v2 and v2.lower() not in ("0", "f", "false"):
        attrs["version"] = "2"
    for key, variables in (
        ("token", ("ACTIONS_RUNTIME_TOKEN",)),
        ("url_v2", ("ACTIONS_RESULTS_URL",)),
        ("url", ("ACTIONS_CACHE_URL", "ACTIONS_RESULTS_URL")),
    ):
        value = next((environ[name] for name in variables if environ.get(name)), "")
        if value:
            attrs.setdefault(key, value)


def check_caches(imports: Sequence[CacheSpec], exports: Sequence[CacheSpec]) -> None:
    """Find what is wrong with caches before anything is built.

    Raises: UsageError for an unknown type, key or value, a missing key, or an export given twice; NotSupported.
    """
    for spec in imports:
        if spec.type == INLINE:
            summary = "an inline cache is imported as type=registry"
            raise UsageError(summary, hint="write --cache-from type=registry,ref=IMAGE")
        _check(spec, exported=False)
    seen: list[tuple[str, dict[str, str]]] = []
    for spec in exports:
        _check(spec, exported=True)
        options = ExportOptions.from_attrs(spec.attrs)
        if spec.type == INLINE and options.max:
            summary = "an inline cache holds only layers of the result: mode=max is not possible"
            raise UsageError(summary, hint="export to type=registry for mode=max")
        if (spec.type, dict(spec.attrs)) in seen:
            summary = f"duplicate cache export of type {spec.type}"
            raise UsageError(summary, hint="leave one of them out")
        seen.append((spec.type, dict(spec.attrs)))


def _check(spec: CacheSpec, *, exported: bool) -> None:
    if spec.type not in _KEYS:
        summary = f"unknown cache type {spec.type!r}"
        raise UsageError(summary, hint=f"types: {', '.join(sorted(_KEYS))}")
    own, more = _KEYS[spec.type]
    known = own | more | (_EXPORT if exported else _MOUNTS | {"mode"})
    for key in spec.attrs:
        if key not in known and key != "type":
            import difflib

            near = difflib.get_close_matches(key, known, 1)
            summary = f"unknown key {key!r} for a cache of type {spec.type}"
            raise UsageError(
                summary, hint=f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(sorted(known))}"
            )
    if spec.type == INLINE:
        return
    required = {"registry": "ref", "local": "dest" if exported else "src"}.get(spec.type)
    if required is not None and not spec.attrs.get(required):
        direction = "export" if exported else "import"
        summary = f"a {spec.type} cache {direction} needs {required}="
        raise UsageError(summary, hint=f"for example type={spec.type},{required}={_EXAMPLES[required]}")


_EXAMPLES = {"ref": "registry.example.com/app:cache", "dest": "cache", "src": "cache"}


def make_backend(spec: CacheSpec, around: Surroundings, *, exported: bool) -> Backend:
    """Make what talks to a place. Raises: UsageError for a value; NotSupported when an extra package is missing."""
    if spec.make is not None:
        return spec.make(spec.attrs)
    from importlib import import_module

    module, name = _BACKENDS[spec.type]
    backend: Backend = getattr(import_module(f"crossdock.engine.remotecache.{module}"), name)(
        spec.attrs, around, exported=exported
    )
    return backend


def _flag(attrs: Mapping[str, str], key: str, *, default: bool = False) -> bool:
    return parse_bool(key, attrs[key]) if key in attrs else default


def _number(attrs: Mapping[str, str], key: str, default: int) -> int:
    text = attrs.get(key, str(default))
    if not text.isdecimal():
        summary = f"invalid value {text!r} for {key}: not a number"
        raise UsageError(summary)
    return int(text)


_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_size(key: str, text: str) -> int:
    """Read ``500MB``, ``2g`` or ``1GiB`` as bytes. Raises: UsageError."""
    lower = text.strip().lower()
    digits = lower.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = lower[len(digits) :].strip()
    base = 2 if unit.endswith("ib") else 10
    scale = unit.removesuffix("ib").removesuffix("b")
    try:
        factor = _UNITS[scale] if base == 10 else 1 << 10 * " kmgt".index(scale)
        size = int(float(digits) * factor)
    except (KeyError, ValueError, OverflowError) as exc:
        summary = f"invalid value {text!r} for {key}"
        raise UsageError(summary, hint="write a size like 500MB or 2GB") from exc
    return size
