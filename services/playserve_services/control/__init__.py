"""The control plane: a registry of policies, keys, replicas and jobs behind REST. Composition root: `app`."""
