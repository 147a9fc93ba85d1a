"""Message traces: how they are written, and the rules of docs/protocol.md that each must keep."""
