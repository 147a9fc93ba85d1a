"""How good a learned world is: rolled out beside the real game, shown beside it, and as a place to rank agents in."""
