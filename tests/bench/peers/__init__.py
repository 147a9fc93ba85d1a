"""What the server is measured against, each in a process of its own."""
