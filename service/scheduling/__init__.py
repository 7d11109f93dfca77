"""Jobs in, outcomes out: what is computed next, and what becomes of it.

In: arrays with a class and a deadline. Out: exactly one outcome a job, on the event loop. It calls
an engine through `service.interface` and knows no HTTP, no torch and no registry.
"""
