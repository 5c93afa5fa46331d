"""Exporters: write a result out as image, OCI layout, archive or files."""
