"""The world model of a car: specification, networks, checkpoints, safety rules.

Usable without the service (in a notebook, say). Import the submodule you need; this package
imports nothing itself, so that torch is loaded only by those who need it.
"""
