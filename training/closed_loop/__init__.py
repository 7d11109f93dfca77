"""A reckless driver in the simulator, with and without monitors: what do they prevent?

In: a checkpoint and the data set it was trained on. Out: results for the report of an evaluation.
May touch processes and the simulator: it starts the service in a process of its own and asks it
through the Python client, as a user would.
"""
