"""Bad and hostile files, words and settings, given to everything that reads any (Linux).

    python tests/attacks/files.py                     # all readers, 100,000 inputs each; recorded
    python tests/attacks/files.py pictures --tries 2000 --no-record
    python tests/attacks/files.py pictures --first 1234 --tries 1 --no-record
    python tests/attacks/files.py --bite              # does the watch see what it must see?

An input is made by its number alone, so that one which did harm is made again by ``--first``. Each
is a good one changed: see `mutations.py`; what is watched, and how: see `watch.py`.
"""

import argparse
import sys

import recorded
import torch
from canaries import CANARIES
from hostile_data import DATA
from hostile_models import MODELS
from hostile_words import WORDS

from watch import MEGABYTES, SECONDS, Attack, run, told

ATTACKS: dict[str, Attack] = {**DATA, **MODELS, **WORDS}


def bite() -> int:
    """Try readers that are known to be bad; return how many the watch did not find out."""
    missed = 0
    for name, (attack, kind) in CANARIES.items():
        result = run(attack, range(1))
        seen = any(kind in finding.kind for finding in result.findings)
        print(f"{name}: {'seen' if seen else 'MISSED'}", flush=True)
        if not seen:
            print(told(result))
        missed += not seen
    return missed


def main() -> int:
    """Run the command line; return 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", help=f"of {', '.join(ATTACKS)} (default: all)")
    parser.add_argument("--tries", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--bite", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.bite:
        return int(bite() > 0)
    found = 0
    for name in args.readers or ATTACKS:
        attack = ATTACKS[name]
        result = run(attack, range(args.first, args.first + args.tries), args.seed)
        found += len(result.findings)
        print(
            f"{name}: {result.tried} tried, {result.accepted} accepted, {result.refused} refused, "
            f"{len(result.findings)} found; {result.seconds:.0f} s, slowest {result.slowest:.2f} s "
            f"(number {result.slowest_number}), {result.memory:.0f} MB more",
            flush=True,
        )
        if result.findings:
            print(told(result), flush=True)
        if not args.no_record:
            recorded.write(
                "files",
                attack.name,
                tried=result.tried,
                unit=attack.unit,
                failed=len(result.findings),
                seconds=result.seconds,
                accepted=result.accepted,
                refused=result.refused,
                slowest_seconds=round(result.slowest, 2),
                memory_megabytes=round(result.memory),
                allowed_seconds=SECONDS,
                allowed_megabytes=MEGABYTES,
            )
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
