"""The arguments by which every command dials a server: TLS, and the key or token."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError
from playserve_client.channels import TlsConfig

__all__ = ["add_dial_arguments", "add_trace_argument", "dial_options", "key_of", "tls_of", "trace_ratio"]

_KEY, _TOKEN, _CA, _TRACE = "PLAYSERVE_API_KEY", "PLAYSERVE_TOKEN", "PLAYSERVE_CA", "PLAYSERVE_TRACE"


def add_dial_arguments(add: Callable[..., object]) -> None:
    """Add --tls and what goes with it, and the key or token, by a parser's `add_argument`; see :func:`dial_options`."""
    add("--tls", default=False, action="store_true", help="dial with TLS, against the system's roots")
    files = (
        ("ca", f"trust these root certificates (PEM) instead (or {_CA}, which alone does not mean --tls)"),
        ("cert", "the client's own certificate, for servers that want one"),
        ("key", "its private key"),
    )
    for name, text in files:
        add(f"--tls-{name}", default=None, type=Path, metavar="FILE", help=text)
    add("--tls-server-name", default="", metavar="NAME", help="name in the server's certificate, if not the host")
    hint = "others on this machine see arguments: @FILE reads it from a file"
    add("--api-key", metavar="KEY", help=f"key for servers that want one (or {_KEY}); {hint}")
    add("--token", metavar="JWT", help=f"token instead of a key (or {_TOKEN}); @FILE likewise")
    add(
        "--insecure-key",
        action="store_true",
        help="send the key over plain text to another machine, where everybody on the way can read it",
    )


def add_trace_argument(add: Callable[..., object]) -> None:
    """Add --trace; see :func:`trace_ratio`."""
    add("--trace", type=float, metavar="SHARE", help="export the spans of this share of the steps by OpenTelemetry, "
        f"where OTEL_EXPORTER_OTLP_ENDPOINT says (or {_TRACE}; default 0: none)")  # fmt: skip


def trace_ratio(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> float:
    """Return the share of steps to trace: of the arguments, else of the environment; 0: none.

    Raises:
        BadSettingError: The variable is no number.
    """
    if args.trace is not None:
        return float(args.trace)
    try:
        return float(environ.get(_TRACE) or 0)
    except ValueError as error:
        raise BadSettingError(f"{_TRACE} {environ[_TRACE]!r}, wanted a number from 0 to 1") from error


def tls_of(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> bool | TlsConfig:
    """Return what a client takes as `tls`."""
    config = TlsConfig(
        root_certificates=args.tls_ca,
        certificate=args.tls_cert,
        private_key=args.tls_key,
        server_name=args.tls_server_name,
    )
    if config == TlsConfig() and not args.tls:
        return False
    if args.tls_ca is None and environ.get(_CA):
        return TlsConfig(
            root_certificates=Path(environ[_CA]),
            certificate=config.certificate,
            private_key=config.private_key,
            server_name=config.server_name,
        )
    return True if config == TlsConfig() else config


def key_of(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the key or token: of the arguments, else of the environment; None: there is none.

    Raises:
        BadSettingError: Both a key and a token are given in the same way, or a file cannot be read.
    """
    key, token = getattr(args, "api_key", None), getattr(args, "token", None)
    if key is None and token is None:
        key, token = environ.get(_KEY) or None, environ.get(_TOKEN) or None
        if key and token:
            raise BadSettingError(f"{_KEY} and {_TOKEN} are both set; a call can carry one of them")
    elif key is not None and token is not None:
        raise BadSettingError("--api-key and --token are both given; a call can carry one of them")
    text = key or token
    return _from_file(text[1:]) if text is not None and text.startswith("@") else text


def _from_file(name: str) -> str:
    try:
        return Path(name).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no ASCII text"
        raise BadSettingError(f"cannot read a key from {name}: {why}") from error


def dial_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a client's constructor takes of these arguments: `tls`, `api_key`, `allow_insecure_key`."""
    return {
        "tls": tls_of(args),
        "api_key": key_of(args),
        "allow_insecure_key": bool(getattr(args, "insecure_key", False)),
    }
