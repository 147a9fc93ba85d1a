"""REST, one module a subject. Routes translate; rules are the repository's. Pages for browsers belong in `pages/`."""
