"""Recorded episodes: collected, stored on disk, and cut into training windows.

In: seeds and shares of behaviours; episodes of any spec; a folder. Out: a `Dataset`, and `Windows`
of states, actions and outcomes. May touch the disk and start processes that simulate.
"""
