"""Token caches: recorded games of any kind as tokens, actions, rewards and probes in mapped arrays."""
