"""``playserve triton``: model repositories with which NVIDIA Triton computes what this project serves."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Write model repositories for NVIDIA Triton."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    export = actions.add_parser(
        "export", help="write the model repository of a policy",
        description="Write a model repository for Triton's Python backend: by default for fronts (`playserve serve "
        "--engine triton`), which send one request a batch; with --sequence for plain tritonclient users.",
    )  # fmt: skip
    export.add_argument("policy", metavar="POLICY", help="its name in the store; also that of Triton's model")
    export.add_argument("out", type=Path, metavar="DIR", help="the repository; other models may lie in it")
    export.add_argument("--store", required=True, metavar="URL", help="folder or fsspec URL of the checkpoint store")
    export.add_argument("--version", default="", metavar="V", help="version or alias (default: the newest)")
    export.add_argument(
        "--sequence",
        action="store_true",
        help="Triton owns the sequences, named by numbers; one version, copied inside",
    )
    export.add_argument("--slots", type=int, default=256, help="of all fronts, or sequences (default %(default)s)")
    export.add_argument("--max-batch", type=int, default=64, metavar="N", help="most rows of one batch (default 64)")
    export.add_argument("--fixed-batch", action="store_true", help="compute every batch at --max-batch rows")
    export.add_argument("--device", default="cpu", help="torch device (default %(default)s)")
    export.add_argument("--threads", type=int, default=1, help="CPU threads of a computation (default %(default)s)")
    export.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")


def run(args: argparse.Namespace) -> int:
    """Write the repository, and say how to serve it."""
    from playserve_services.triton.host import HostSettings
    from playserve_services.triton.repository import export_batch, export_sequence

    settings = HostSettings.from_parameters({name: getattr(args, name) for name in HostSettings.model_fields})
    model = (export_sequence if args.sequence else export_batch)(settings, args.out, version=args.version)
    print(f"wrote {model}")
    print(f"serve it: tritonserver --model-repository={args.out}   (with playserve[serve] installed for its Python)")
    if not args.sequence:
        front = f"--store {args.store} --engine triton --triton-url HOST:8001"
        print(f"then:     playserve serve {front}")
    return 0
