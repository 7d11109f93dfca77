"""What every long command needs: it stops as asked, alone in its folder, and says how far it is.

In: signals, folders, counts. Out: exceptions, locks, lines on stderr. May touch signals, the
terminal and the disk.
"""
