"""Turn a finished run into a released checkpoint, and write down in weights/manifest.json where it is from.

    python -m common.release runs/gan-sagan weights/sagan.pt --scores runs/gan-sagan/scores.json

The released file holds the inference weights in half precision. The manifest says what made it: command,
seed, steps, training time, hardware, versions, scores, and the file's SHA-256.
"""

import argparse
import json
from pathlib import Path

from common.checkpoint import MANIFEST, release, sha256
from common.cli import Parser, run_main
from common.errors import UserError
from common.files import write_json


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN_DIR", type=Path)
    parser.add_argument("out", metavar="OUT.pt", type=Path, help="the file to write; the manifest stands beside it")
    parser.add_argument("--scores", metavar="JSON", type=Path, help="what an evaluate command wrote")
    parser.add_argument("--note", help="what a user of the weights should know")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    try:
        settings = json.loads((args.run / "args.json").read_text())
        versions = json.loads((args.run / "versions.json").read_text())
        done = json.loads((args.run / "done").read_text())
        scores = json.loads(args.scores.read_text()) if args.scores else None
    except (OSError, ValueError) as error:
        raise UserError(f"{args.run} is not a finished run, or --scores is no JSON file: {error}") from None
    entry = release(args.run / "last.pt", args.out)
    entry |= {"sha256": sha256(args.out), "seed": settings["seed"], "seconds": done["seconds"],
              "args": settings, "versions": versions, "scores": scores}
    if args.note:
        entry["note"] = args.note
    manifest_path = args.out.with_name(MANIFEST)
    manifest = json.loads(manifest_path.read_text()) if manifest_path.exists() else {}
    manifest[args.out.name] = entry
    write_json(manifest_path, dict(sorted(manifest.items())))
    print(f"wrote {args.out} ({args.out.stat().st_size / 2**20:.1f} MiB) and its entry in {manifest_path}")
    return 0


if __name__ == "__main__":
    run_main(main)
