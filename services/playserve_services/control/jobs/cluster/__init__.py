"""Jobs as Kubernetes Indexed Jobs: settings, manifests, the few calls of the API, and the workers around them."""
