"""Results of solves: file systems that are made when somebody needs them, and their metadata.

Spec: moby/buildkit ``frontend/gateway/pb/gateway.proto`` (Result), ``exporter/containerimage/exptypes`` (metadata keys).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from crossdock.buildkit.proto import gateway_pb2, ops_pb2
from crossdock.buildkit.session.server import new_id
from crossdock.errors import NotSupported, SolveError, UsageError
from crossdock.image.config import ImageConfig
from crossdock.image.platform import Platform, local_platform
from crossdock.llb.codec import encode_definition, marshal
from crossdock.llb.decode import decode_definition, unmarshal
from crossdock.server.caps import KNOWN_CAPS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crossdock.engine.cache.refs import Ref
    from crossdock.llb.graph import Output
    from crossdock.llb.policyrules import Policy
    from crossdock.server.frontendattests import Given

__all__ = [
    "ResultRef",
    "Results",
    "decode_output",
    "platform_from_pb",
    "platform_json",
    "platform_to_pb",
    "platforms_of",
]

_PLATFORMS = "refs.platforms"
_CONFIG = "containerimage.config"
_BASE_CONFIG = "containerimage.base.config"
_EPOCH = "source.date.epoch"


class ResultRef:
    """One file system of a result; ``ref`` is set once it was solved. Written by whoever holds the job's lock."""

    __slots__ = ("_definition", "id", "ignore_cache", "output", "policed", "policies", "ref", "scan")

    def __init__(
        self, output: Output | None, scan: Mapping[str, Output] | None = None, *, ignore_cache: bool = False
    ) -> None:
        """``scan`` are further file systems that an SBOM's scanner is to look at."""
        self.id = new_id()
        self.output = output
        self.scan = dict(scan or {})
        self.ignore_cache = ignore_cache
        self.ref: Ref | None = None
        #: rules for the sources of this result alone, and whether all rules were asked
        self.policies: Sequence[Policy] = ()
        self.policed = False
        self._definition: ops_pb2.Definition | None = None

    @property
    def definition(self) -> ops_pb2.Definition:
        """The definition, so that a client can build on the result."""
        if self._definition is None:
            raw = encode_definition(marshal(self.output))
            self._definition = ops_pb2.Definition.FromString(raw)
        return self._definition


class Results:
    """What a solve gives: one file system or one per platform, and metadata."""

    __slots__ = ("attestations", "metadata", "refs", "single")

    def __init__(
        self,
        refs: Mapping[str, ResultRef | None],
        metadata: Mapping[str, bytes] | None = None,
        *,
        single: bool,
        attestations: Mapping[str, Sequence[Given]] | None = None,
    ) -> None:
        #: by platform id; under ``""`` when ``single``
        self.refs = dict(refs)
        self.metadata = dict(metadata or {})
        self.single = single
        #: by platform id: what a frontend made, as it said it, with the file system it is in
        self.attestations = dict(attestations or {})

    @classmethod
    def of(cls, output: Output | None, metadata: Mapping[str, bytes] | None = None) -> Results:
        """Return the result of a definition."""
        return cls({"": ResultRef(output) if output is not None else None}, metadata, single=True)

    @classmethod
    def empty(cls, metadata: Mapping[str, bytes] | None = None) -> Results:
        """Return a result without a file system."""
        return cls({"": None}, metadata, single=True)

    def all_refs(self) -> list[ResultRef]:
        """Return the file systems there are, those with attestations in them last."""
        own = [ref for ref in self.refs.values() if ref is not None]
        return [*own, *(ref for given in self.attestations.values() for _, ref in given)]

    def to_pb(self, *, arrays: bool) -> gateway_pb2.Result:
        """Return the message; ``arrays``: the client knows the form with definitions."""
        out = gateway_pb2.Result(metadata=self.metadata)
        for key, given in self.attestations.items():
            out.attestations[key].attestation.extend(message for message, _ in given)
        ids = {key: ref.id if ref is not None else "" for key, ref in self.refs.items()}
        if self.single and arrays:
            out.ref.CopyFrom(self._ref(self.refs[""]))
        elif self.single:
            out.refDeprecated = ids[""]
        elif arrays:
            for key, ref in self.refs.items():
                out.refs.refs[key].CopyFrom(self._ref(ref))
            out.refs.SetInParent()
        else:
            out.refsDeprecated.refs.update(ids)
        return out

    @staticmethod
    def _ref(ref: ResultRef | None) -> gateway_pb2.Ref:
        if ref is None:
            return gateway_pb2.Ref()
        return gateway_pb2.Ref(id=ref.id, **{"def": ref.definition})

    @classmethod
    def from_pb(cls, message: gateway_pb2.Result, known: Mapping[str, ResultRef]) -> Results:
        """Read a result that names file systems of earlier solves.

        Raises: UsageError when one is not known.
        """
        metadata = dict(message.metadata)
        made = {key: _attested(value, known) for key, value in message.attestations.items()}
        match message.WhichOneof("result"):
            case "refs":
                found = {k: _known(r.id, known) for k, r in message.refs.refs.items()}
            case "refsDeprecated":
                found = {k: _known(i, known) for k, i in message.refsDeprecated.refs.items()}
            case "ref":
                return cls({"": _known(message.ref.id, known)}, metadata, single=True, attestations=made)
            case "refDeprecated":
                return cls(
                    {"": _known(message.refDeprecated, known)}, metadata, single=True, attestations=made
                )
            case _:
                return cls.empty(metadata)
        return cls(found, metadata, single=False, attestations=made)


def _known(name: str, known: Mapping[str, ResultRef]) -> ResultRef | None:
    if not name:
        return None
    if name not in known:
        summary = f"no such ref: {name}"
        raise UsageError(summary)
    return known[name]


def _attested(message: gateway_pb2.Attestations, known: Mapping[str, ResultRef]) -> list[Given]:
    """Read what a frontend attests. Raises: UsageError, NotSupported."""
    from crossdock.server.frontendattests import check_attestation

    found: list[Given] = []
    for given in message.attestation:
        check_attestation(given)
        ref = _known(given.ref.id, known)
        if ref is not None:
            found.append((given, ref))
    return found


def decode_output(definition: ops_pb2.Definition) -> Output | None:
    """Return the graph of a definition; ``None`` is the empty file system.

    Raises: SolveError when malformed; NotSupported for what this version does not know.
    """
    decoded = decode_definition(definition.SerializeToString())
    for metadata in decoded.metadata.values():
        for name in metadata.caps.keys() - KNOWN_CAPS:
            summary = f"the definition needs {name}, which this server does not have"
            raise NotSupported(summary, hint="Ping tells what there is")
    return unmarshal(decoded).result


class PlatformResult:
    """One platform of a result as exporters want it."""

    __slots__ = ("attestations", "base_config", "config", "epoch_s", "id", "platform", "ref")

    def __init__(
        self,
        name: str,
        platform: Platform,
        ref: ResultRef | None,
        config: ImageConfig | None,
        base_config: ImageConfig | None,
        epoch_s: int | None,
    ) -> None:
        self.id = name
        self.platform = platform
        self.ref = ref
        self.config = config
        self.base_config = base_config
        self.epoch_s = epoch_s
        #: what its frontend attests of it
        self.attestations: Sequence[Given] = ()


def platforms_of(results: Results) -> list[PlatformResult]:
    """Read the platforms of a result from its metadata.

    Raises: SolveError when the metadata is malformed or lacks a platform; LayerError for a malformed config.
    """
    listed = list(_listed_platforms(results))
    if results.single:
        if len(listed) > 1:
            summary = "unable to export multiple platforms without map"
            raise SolveError(summary)
        name, platform = listed[0] if listed else ("", None)
        return [_platform(results, name, platform, results.refs[""], suffixed=False)]
    if not listed:
        summary = "unable to export multiple refs, missing platforms mapping"
        raise SolveError(summary)
    out = []
    for name, platform in listed:
        if name not in results.refs:
            summary = f"failed to find ref for ID {name}"
            raise SolveError(summary)
        out.append(_platform(results, name, platform, results.refs[name], suffixed=True))
    return out


def _listed_platforms(results: Results) -> Iterator[tuple[str, Platform]]:
    raw = results.metadata.get(_PLATFORMS)
    if not raw:
        return
    try:
        listed = json.loads(raw)["Platforms"] or []
        for item in listed:
            p = item["Platform"]
            yield (
                str(item["ID"]),
                Platform(
                    str(p["os"]),
                    str(p["architecture"]),
                    str(p.get("variant", "")),
                    str(p.get("os.version", "")),
                    tuple(p.get("os.features") or ()),
                ),
            )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        why = f"it lacks {exc}" if isinstance(exc, KeyError) else exc
        summary = f"the result's {_PLATFORMS} is malformed: {why}"
        raise SolveError(summary) from exc


def _platform(
    results: Results, name: str, platform: Platform | None, ref: ResultRef | None, *, suffixed: bool
) -> PlatformResult:
    def value(key: str) -> bytes | None:
        own = results.metadata.get(f"{key}/{name}") if name else None
        return own if own is not None or suffixed else results.metadata.get(key)

    raw, base, epoch = value(_CONFIG), value(_BASE_CONFIG), value(_EPOCH)
    whose = f" for {name}" if name else ""
    config = ImageConfig.from_json(raw, f"the result's {_CONFIG}{whose}") if raw else None
    base_config = ImageConfig.from_json(base, f"the result's {_BASE_CONFIG}{whose}") if base else None
    if platform is None:
        platform = config.platform if config is not None and config.platform.os else local_platform()
    try:
        epoch_s = int(epoch) if epoch else None
    except ValueError as exc:
        summary = f"the result's {_EPOCH} is not a number"
        raise SolveError(summary) from exc
    found = PlatformResult(name, platform, ref, config, base_config, epoch_s)
    for key in (name, str(platform.normalised())):
        found.attestations = found.attestations or results.attestations.get(key, ())
    return found


def platform_json(platform: Platform) -> dict[str, Any]:
    """Return a platform in the form of image-spec's JSON."""
    out: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
    if platform.os_version:
        out["os.version"] = platform.os_version
    if platform.os_features:
        out["os.features"] = list(platform.os_features)
    if platform.variant:
        out["variant"] = platform.variant
    return out


def platform_to_pb(platform: Platform) -> ops_pb2.Platform:
    """Return a platform as a message."""
    return ops_pb2.Platform(
        Architecture=platform.architecture,
        OS=platform.os,
        Variant=platform.variant,
        OSVersion=platform.os_version,
        OSFeatures=platform.os_features,
    )


def platform_from_pb(message: ops_pb2.Platform) -> Platform:
    """Read a platform."""
    return Platform(
        message.OS, message.Architecture, message.Variant, message.OSVersion, tuple(message.OSFeatures)
    )
