"""Jobs on this machine: typed requests become ``playserve`` commands, a keeper runs each, the runner watches them."""
