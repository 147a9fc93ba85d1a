"""Small functions over a database session: what the registry knows, and its changes, each with its line of audit."""
