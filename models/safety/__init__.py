"""Verdicts: is what was predicted safe? NumPy only.

In: a prediction with its start, and a checkpoint's limits. Out: verdicts with their reasons. It
touches nothing else.
"""

from models.safety.limits import RULES, Reason, SafetyLimits
from models.safety.verdicts import SAFE, UNKNOWN, UNSAFE, VERDICTS, Verdict, assess, safest

__all__ = [
    "RULES",
    "SAFE",
    "UNKNOWN",
    "UNSAFE",
    "VERDICTS",
    "Reason",
    "SafetyLimits",
    "Verdict",
    "assess",
    "safest",
]
