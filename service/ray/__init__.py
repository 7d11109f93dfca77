"""The service on Ray Serve: replicas of the same app on the nodes of a cluster.

In: arguments and the environment of `serve run` or `serve deploy`; from Ray, requests as ASGI. Out:
an application of Ray Serve; for Ray, how long requests would wait, and whether a replica is ready.
May touch Ray, a port for each replica's metrics, and the environment; the only room that imports
Ray, and nothing imports it. The controller and the proxies of Ray import `scaling` and `routing`,
so these import nothing heavy.
"""
