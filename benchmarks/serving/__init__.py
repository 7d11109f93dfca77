"""The whole service over loopback HTTP, side by side with its limits and with other servers."""
