"""A terminal view of one inference server: its policies, slots, sessions and times."""
