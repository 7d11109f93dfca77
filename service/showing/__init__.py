"""A prediction for a person: as a table, or as a scene that opens in Rerun.

In: a file with an episode or the body of a request, and a checkpoint. Out: the prediction with its
verdict, as text or as a recording of Rerun. May touch the disk; it is the only room that imports
rerun.
"""
