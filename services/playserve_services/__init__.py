"""The inference service: sessions, batching, gRPC and HTTP servers."""
