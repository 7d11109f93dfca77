"""Bytes to jobs, and results to bytes: the only room that knows HTTP.

In: what callers send, from uvicorn. Out: jobs for `service.scheduling`; answers for the callers;
counts and spans for `service.telemetry`. It touches neither the engine nor torch.
"""
