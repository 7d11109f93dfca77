"""The service: HTTP in, verdicts out. Parts are imported one by one; this package imports none."""

__version__ = "0.2.0"
"""The release, stated here alone: docs/versions.md. `python -m tools.release` raises it."""
