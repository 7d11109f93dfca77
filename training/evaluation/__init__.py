"""What a checkpoint is worth: against baselines, on episodes that were held out.

In: a checkpoint folder and a data set. Out: plain numbers, and the tables and plots of a report.
May touch the disk, processes and simulations, in which it tries out sequences that nobody recorded.
"""
