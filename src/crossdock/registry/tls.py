"""TLS contexts: the system's trust store, certificates of ``certs.d``, client certificates.

Verification is as lenient about certificate form as Go's, so that authorities made for docker work here.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.errors import ConfigError

if TYPE_CHECKING:
    from crossdock.registry.config import TlsConfig

__all__ = ["make_context"]

#: where distributions keep the bundle, for interpreters whose OpenSSL was built with other paths
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def make_context(config: TlsConfig) -> ssl.SSLContext:
    """Build the client context for a configuration.

    Raises: ConfigError naming the file that cannot be read or is no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if config.verify:
        _trust(context, config)
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for certificate, key in config.client_pairs:
        try:
            context.load_cert_chain(certificate, key)
        except OSError as exc:
            summary = f"cannot use the client certificate {certificate} with the key {key}: {_reason(exc)}"
            raise ConfigError(
                summary, hint="docker's certs.d wants PEM files NAME.cert and NAME.key"
            ) from exc
    return context


def _trust(context: ssl.SSLContext, config: TlsConfig) -> None:
    context.load_default_certs()
    if not context.cert_store_stats()["x509_ca"] and not _has_default_directory():
        for bundle in _BUNDLES:
            if Path(bundle).is_file():
                context.load_verify_locations(bundle)
                break
    # A certificate in certs.d is trusted as it is, also when it is no root.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # Python 3.13 sets the strict flag, which refuses home-made authorities that Go accepts.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    for path in config.ca_files:
        try:
            context.load_verify_locations(path)
        except OSError as exc:
            summary = f"cannot use the CA certificate {path}: {_reason(exc)}"
            raise ConfigError(summary, hint="it must be a PEM file") from exc


def _has_default_directory() -> bool:
    directory = ssl.get_default_verify_paths().capath
    return bool(directory) and any(Path(directory).iterdir())


def _reason(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        return exc.reason or "not a PEM file"
    return exc.strerror or str(exc)
