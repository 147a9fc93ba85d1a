"""Coverage-guided fuzzing of one target with Atheris (libFuzzer), from the seeds and the kept corpus.

``python tests/fuzz/fuzz.py session --seconds 600`` (needs: pip install atheris). What fails is written to
``--out``; put it into ``corpus/TARGET``, where the fast tests replay it for ever.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

CORPUS = Path(__file__).resolve().parent / "corpus"
#: Packages whose branches guide the search.
_GUIDED = ["playserve", "playserve_client.recap", "playserve_client.results", "playserve_services.inference"]

with atheris.instrument_imports(include=_GUIDED, enable_loader_override=False):
    from seeds import seeds
    from targets import TARGETS


def main(argv: list[str]) -> None:
    """Fuzz; ends the process with libFuzzer's status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="how long (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="where findings go (default %(default)s)")
    parser.add_argument("--keep", type=Path, help="folder of inputs that reached something new (default: none is kept)")
    parser.add_argument("--seed", type=int, default=0, help="of the search; 0: drawn")
    args = parser.parse_args(argv[1:])
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="playserve-fuzz-") as name:
        begin, reached = Path(name) / "seeds", args.keep or Path(name) / "reached"
        begin.mkdir()
        reached.mkdir(parents=True, exist_ok=True)
        kept = [path.read_bytes() for path in sorted((CORPUS / args.target).glob("*"))]
        for index, data in enumerate([*seeds()[args.target], *kept]):
            (begin / str(index)).write_bytes(data)
        options = [
            f"-max_total_time={args.seconds}", f"-artifact_prefix={args.out / args.target}-", "-timeout=30",
            "-rss_limit_mb=4096", f"-seed={args.seed}", "-max_len=8192", "-print_final_stats=1",
        ]  # fmt: skip
        atheris.Setup([argv[0], *options, str(reached), str(begin)], TARGETS[args.target])
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
