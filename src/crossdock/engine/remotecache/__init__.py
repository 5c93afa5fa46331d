"""Build caches outside the store: export and import in BuildKit's cache format.

Modules, from values up: ``config`` (the document), ``chain`` (our keys in it), ``manifest`` (what wraps it in a registry or
layout), ``backend`` (what a place must do) < ``registry``, ``local``, ``s3``, ``azblob``, ``gha`` < ``importer``, ``exporter``.
See ``docs/guides/cache.md``.
"""
