"""The Python client of the world-model service."""
