"""The dashboard: server-rendered pages over what the REST routes answer. It asks them, and has no rules of its own."""
