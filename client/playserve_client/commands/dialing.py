"""The arguments by which every command dials a server: TLS. A key comes from the environment, never from a flag."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from playserve_client.channels import TlsConfig

__all__ = ["add_tls_arguments", "tls_of"]


def add_tls_arguments(add: Callable[..., object]) -> None:
    """Add --tls and what goes with it, by a parser's `add_argument`; each of the others means --tls, too."""
    add(
        "--tls",
        default=False,
        action="store_true",
        help="dial with TLS, against the system's roots; the key is read from PLAYSERVE_API_KEY",
    )
    add("--tls-ca", default=None, type=Path, metavar="FILE", help="trust these root certificates (PEM) instead")
    add(
        "--tls-cert",
        default=None,
        type=Path,
        metavar="FILE",
        help="the client's own certificate, for servers that want one",
    )
    add("--tls-key", default=None, type=Path, metavar="FILE", help="its private key")
    add("--tls-server-name", default="", metavar="NAME", help="name in the server's certificate, if not the host")


def tls_of(args: argparse.Namespace) -> bool | TlsConfig:
    """Return what a client takes as `tls`."""
    config = TlsConfig(
        root_certificates=args.tls_ca,
        certificate=args.tls_cert,
        private_key=args.tls_key,
        server_name=args.tls_server_name,
    )
    return bool(args.tls) if config == TlsConfig() else config
