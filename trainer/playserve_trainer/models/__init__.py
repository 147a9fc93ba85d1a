"""Model families: one module each, an nn.Module beside its Config. A leaf."""
