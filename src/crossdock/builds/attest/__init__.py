"""Attestations: what is asked for, the provenance and bills of materials that answer it.

Imported only when a build asks for attestations.
"""

from crossdock.builds.attest.build import BuildAttestations, Target, metadata_provenance
from crossdock.builds.attest.provenance import BuildFacts
from crossdock.builds.attest.requests import AttestRequests, ProvenanceOptions, SbomOptions, read_attests

__all__ = [
    "AttestRequests",
    "BuildAttestations",
    "BuildFacts",
    "ProvenanceOptions",
    "SbomOptions",
    "Target",
    "metadata_provenance",
    "read_attests",
]
