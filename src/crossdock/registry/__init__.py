"""Registry client: the OCI distribution protocol, authentication, transfers."""
