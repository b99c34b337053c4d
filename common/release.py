"""Make a released checkpoint from a finished run, and record in the manifest beside it how it was made.

    python -m common.release runs/gan-sagan weights/sagan.pt --scores runs/gan-sagan/scores.json

The released file holds the inference weights in half precision. The manifest holds the command, seed, steps,
training time, hardware, versions, scores, and the file's SHA-256.
"""

import argparse
from pathlib import Path
from typing import Any

from common import checkpoint
from common.cli import Parser, add_force_flag, ending, run_main
from common.errors import UserError
from common.files import read_json, require_new, write_json


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN_DIR", type=Path)
    parser.add_argument("out", metavar="OUT.pt", type=ending(".pt"), help="the file to write, beside manifest.json")
    parser.add_argument("--scores", metavar="JSON", type=Path,
                        help="scores written by gan.evaluate or diffusion.evaluate, or result.json of dann.train")
    parser.add_argument("--note", help="what a user of the weights should know")
    add_force_flag(parser)
    return parser.parse_args(argv)


def write_weights(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write the inference weights of a loaded checkpoint in half precision; return its kind, model_args and step."""
    weights = {name: w.half() if w.is_floating_point() else w for name, w in content["weights"].items()}
    if large := [name for name, w in weights.items() if not w.isfinite().all()]:
        raise UserError(f"{large[0]} has numbers that half precision cannot hold: train with a lower learning rate")
    about = {name: content[name] for name in ("kind", "model_args", "step")}
    checkpoint.save(path, {**about, "weights": weights})
    return about


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    manifest_path = args.out.with_name(checkpoint.MANIFEST)
    if args.out.parent.resolve() == args.run.resolve():
        raise UserError(f"{args.out} is in the run folder: name a file outside")
    require_new(args.force, args.out)
    if not (args.run / "done").exists():
        raise UserError(f"{args.run} is not a finished run: --resume auto finishes it")
    manifest = read_json(manifest_path, "a manifest") if manifest_path.exists() else {}
    if not all(isinstance(entry, dict) and "sha256" in entry for entry in manifest.values()):
        raise UserError(f"{manifest_path} is no manifest of released files: name another folder")
    settings, versions, done = (read_json(args.run / name, "a file of a run") for name in
                                ("args.json", "versions.json", "done"))
    scores = read_json(args.scores, "scores of an evaluate command") if args.scores else None
    if args.out.name in manifest and not args.force:
        raise UserError(f"{manifest_path} has {args.out.name}: name another file, or replace it with --force")
    content = checkpoint.load(args.run / "last.pt")
    if not content.get("step") == done.get("steps") == settings.get("steps"):
        raise UserError(f"{args.run} is not finished: its checkpoint is of step {content.get('step')} of "
                        f"{settings.get('steps')}; --resume auto finishes it")
    kind = content["kind"].split("/")[0]
    if scores is not None and scores.get("kind", "dann" if "oracle" in scores else None) != kind:
        raise UserError(f"{args.scores} does not hold scores of {kind}: name those of {args.run}, or evaluate it again")
    entry = write_weights(content, args.out)
    entry |= {"sha256": checkpoint.sha256(args.out), "seed": settings["seed"], "seconds": done["seconds"],
              "args": settings, "versions": versions, "scores": scores}
    if args.note:
        entry["note"] = args.note
    manifest[args.out.name] = entry
    write_json(manifest_path, dict(sorted(manifest.items())))
    print(f"wrote {args.out} ({args.out.stat().st_size / 2**20:.1f} MiB) and its entry in {manifest_path}")


if __name__ == "__main__":
    run_main(main)
