"""Recorded episodes: collected, stored on disk, and cut into training windows.

In: seeds and shares of behaviours; a folder. Out: an `EpisodeStore`, and `Windows` of states,
actions and outcomes. May touch the disk and start processes that simulate.
"""
