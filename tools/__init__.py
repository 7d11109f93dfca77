"""Tools of this repository: in, its files; out, reports. Nothing that is shipped imports them."""
