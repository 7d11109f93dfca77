"""Other servers of the same weights: each a server file and the packages that it needs."""
