"""Driving in SUMO, an independent simulator: mixed traffic, pedestrians, junctions, real mistakes.

In: a seed and the name of a network. Out: a `SumoSimulation` to step, as `simulator.Simulation` is.
Networks are code (`networks.py`), made into files in a temporary folder by netconvert. The ego is
moved by our own bicycle and shown to SUMO, whose traffic reacts to it. The only package that
imports SUMO, which has one simulation a process.
"""
