"""Recorded episodes: collected, stored on disk, and cut into training windows.

In: seeds and shares of behaviours; episodes of any spec; a folder of them. Out: shards on disk, a
`Dataset`, `Windows` of states, actions and outcomes, and some episodes as JSON. May touch the
disk and start processes that simulate.
"""
