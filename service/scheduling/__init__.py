"""Jobs in, outcomes out: what is computed next, and what becomes of it.

In: arrays with a class and a deadline. Out: exactly one outcome per job, on the event loop. May
touch the event loop and the engine's thread; calls an engine through `service.interface`; knows no
HTTP, no torch and no registry.
"""
