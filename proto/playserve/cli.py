"""The console command `playserve`: finds the subcommands that the installed packages register, and runs one.

A subcommand is a module, named by an entry point of the group ``playserve.commands``, with

* ``SUMMARY: str``, one line for the overview;
* ``configure(parser)``, which adds the arguments and imports nothing heavy;
* ``run(args) -> int``, which does the work and returns the exit status.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from typing import Protocol, cast

from playserve.errors import PlayserveError

__all__ = ["Command", "build_parser", "main"]

# The extra that brings a module, for the hint after a failed import.
_EXTRAS = {
    "torch": "train", "safetensors": "train", "fsspec": "train", "yaml": "train",
    "transformers": "text", "sentence_transformers": "text",
    "prometheus_client": "serve", "pydantic_settings": "serve", "fastapi": "serve", "grpc_health": "serve",
    "grpc_reflection": "serve", "tritonclient": "serve", "jwt": "serve", "cryptography": "serve",
    "sqlalchemy": "control", "alembic": "control", "psycopg": "control", "uvicorn": "control",
    "python_multipart": "control", "kubernetes": "control",
    "ale_py": "envs", "gymnasium": "envs", "nle": "envs", "cv2": "envs", "rich": "envs", "PIL": "envs",
    "vizdoom": "envs", "av": "envs",
    "scipy": "laws", "matplotlib": "laws",
    "lz4": "play", "simplejpeg": "play", "mss": "play", "pynput": "play", "pygame": "play",
}  # fmt: skip


class Command(Protocol):
    """What a subcommand's module holds."""

    SUMMARY: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work; return the exit status."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every registered subcommand."""
    parser = argparse.ArgumentParser(prog="playserve", description="Train policies that play games, and serve them.")
    parser.add_argument("--version", action="version", version=f"playserve {version('playserve')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for entry in sorted(entry_points(group="playserve.commands"), key=lambda e: e.name):
        try:
            command = cast(Command, entry.load())
        except ImportError as error:
            # One broken package must not take the others' commands with it; the error is shown to who calls it.
            broken = commands.add_parser(entry.name, help=f"(cannot be loaded: {error})")
            broken.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
            broken.set_defaults(run=_raiser(error))
            continue
        sub = commands.add_parser(entry.name, help=command.SUMMARY, description=command.SUMMARY)
        command.configure(sub)
        sub.set_defaults(run=command.run)
    return parser


def _raiser(error: ImportError) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; errors that a user can mend are one line on stderr and exit status 2."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except PlayserveError as error:
        print(f"playserve: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(
            f"playserve: '{args.command}' needs the package {error.name!r}; install it with\n"
            f"  pip install 'playserve[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 130
