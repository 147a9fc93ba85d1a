"""The Open Inference Protocol, version 2, on our own port: plain tritonclient programs play sequences here."""
