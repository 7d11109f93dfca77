"""Side-by-side measurements; each module is a command, `make bench` runs them all."""
