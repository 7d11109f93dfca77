"""The GPU path in one command: see README.md."""
