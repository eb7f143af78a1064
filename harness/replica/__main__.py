"""`python -m harness.replica OUT [--seed N] [key=value ...]`; keys: the fields of `ReplicaConfig`."""

import sys
from pathlib import Path

from encoder.runtime.config import load
from encoder.runtime.stage import BAD_INPUT
from harness.replica.config import ReplicaConfig
from harness.replica.write import write

USAGE = "usage: python -m harness.replica OUT [--seed N] [key=value ...]"


def main(words: list[str]) -> int:
    """Write a replica; the exit code: 0 done, 2 the caller is wrong."""
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if words else sys.stderr)
        return 0 if words else BAD_INPUT
    out, *rest = words
    if "--seed" in rest:
        place = rest.index("--seed")
        rest[place : place + 2] = [f"seed={rest[place + 1]}"] if place + 1 < len(rest) else ["seed="]
    try:
        for line in write(Path(out), load(ReplicaConfig, overrides=rest, name="replica")):
            print(line, flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
