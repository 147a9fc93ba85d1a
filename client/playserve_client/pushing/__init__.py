"""Recordings on their way to a control plane: found, bundled, and sent in pieces that can be taken up again."""
