"""Who is asking, and what they may do: API keys, tokens, TLS. Shared by the inference service and the control plane."""
