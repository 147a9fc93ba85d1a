"""The flags of :class:`~playserve_services.auth.issuer.IssuerSettings`, which `serve` and `control` share."""

from __future__ import annotations

from argparse import _ActionsContainer

__all__ = ["add_issuer_flags"]


def add_issuer_flags(parser: _ActionsContainer) -> None:
    """Add the flags to a parser, or to a group of its."""
    add = parser.add_argument
    add("--jwt-issuer", metavar="ISS", help="take JSON Web Tokens of this issuer, beside keys")
    add("--jwt-audience", metavar="AUD", help="audience that they must name")
    add("--jwt-jwks", metavar="FILE|URL", help="the issuer's public keys")
    add("--jwt-leeway-s", type=float, metavar="S", help="how far the issuer's clock may be off (default 10, most 25)")
