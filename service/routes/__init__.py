"""One file a family of routes: parse, submit, answer."""
