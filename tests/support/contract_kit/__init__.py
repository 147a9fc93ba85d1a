"""What the contract suite and the integration tests share: raw streams, and the servers that they are held against."""
