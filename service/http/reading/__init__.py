"""Request bodies to arrays, and what exactly is wrong with those that are refused.

In: the bytes of a body. Out: `bodies.Parsed`, or an error that names each fault. It touches nothing
else: no connection, no job, no clock.
"""
