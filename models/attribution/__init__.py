"""What the crash probability of one sequence is attributed to.

A state is compared with a baseline in which nothing threatens the ego (`scene.py`). Integrated
gradients share the difference of the two crash probabilities out among the features (Sundararajan,
Taly, Yan 2017, "Axiomatic attribution for deep networks"; `integrated.py`, the only file here that
imports torch).

In: the members of a model on a CPU, one state and its actions. Out: shares as arrays (`shares.py`).
It touches nothing else.
"""
