"""What operators see of the service: metrics, traces and logs.

In: what the other rooms report. Out: Prometheus text, OpenTelemetry spans, log lines. The only room
that imports `prometheus_client` and `opentelemetry`; it decides nothing.
"""
