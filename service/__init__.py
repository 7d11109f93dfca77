"""The service: HTTP in, verdicts out. Parts are imported one by one; this package imports none."""
