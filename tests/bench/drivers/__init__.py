"""Client-side load: the same loops for every server."""
