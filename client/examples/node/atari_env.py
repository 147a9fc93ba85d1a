"""An Atari game on two pipes, for programs that are not Python: the emulator's bindings are Python's alone.

Each line on stdin is a JSON object, ``{"reset": SEED}`` or ``{"step": ACTION}``. Each answer on stdout is a line of
JSON, ``{"reward", "terminated", "truncated", "shape", "bytes"}``, followed by that many bytes: the observation, uint8
in C order, four grey frames of 84 x 84 stacked along the last dimension. The end of stdin ends the program.
"""

from __future__ import annotations

import argparse
import json
import sys

from playserve_client.envs.atari import AtariEnv

__all__ = ["main"]


def main() -> int:
    """Serve one game until stdin ends."""
    parser = argparse.ArgumentParser(description="One Atari game on stdin and stdout.")
    parser.add_argument("--game", default="freeway", help="game in snake case (default freeway)")
    env = AtariEnv(parser.parse_args().game)
    for line in sys.stdin:
        request = json.loads(line)
        reward, terminated, truncated = 0.0, False, False
        if "reset" in request:
            frames, _ = env.reset(seed=int(request["reset"]))
        else:
            frames, reward, terminated, truncated, _ = env.step(int(request["step"]))
        header = {"reward": reward, "terminated": terminated, "truncated": truncated,
                  "shape": frames.shape, "bytes": frames.nbytes}  # fmt: skip
        sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + frames.tobytes())
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
