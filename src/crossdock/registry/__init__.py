"""Registry client: the OCI distribution protocol, authentication, transfers.

Not for: what images mean (``crossdock.image``) or where blobs are kept (``crossdock.engine.store``).
"""

from crossdock.registry.client import RegistryClient
from crossdock.registry.config import HostConfig, RegistryConfig
from crossdock.registry.credentials import Credential, Credentials

__all__ = ["Credential", "Credentials", "HostConfig", "RegistryClient", "RegistryConfig"]
