"""Break the code in sensible places, one at a time, and see whether the tests notice.

    python tests/mutations.py            # all, some five minutes on one core
    python tests/mutations.py unet grl   # those whose file or description holds one of the words

Works on a copy of the tracked files in a temporary folder. Says for each mutation whether the tests named for it
caught it; exits with 1 if one survived. `test_mutations.py` sees to it that every old text is still in its file.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
import scipy.io  # noqa: F401  here, and not in every fork
import torchvision  # noqa: F401

PROJECT = Path(__file__).resolve().parent.parent


class Mutation(NamedTuple):
    """A text of a file, what takes its place, what that breaks, and the tests (as for pytest) that must fail."""

    file: str
    old: str
    new: str
    breaks: str
    tests: str


MUTATIONS = [Mutation(*row) for row in (
    # common
    ("common/batches.py", "self.seed * 1_000_003 + self.epoch", "self.seed * 1_000_003",
     "every epoch comes in one order", "tests/common/test_batches.py"),
    ("common/batches.py", 'state["position"]\n        self._order = self._permutation()', 'state["position"]',
     "a resumed stream goes on in the first epoch's order", "tests/common/test_batches.py"),
    ("common/batches.py", 'if state["num_items"] != self.num_items:', "if False:",
     "a resume goes on with another number of images", "tests/common/test_batches.py"),
    ("common/ema.py", "min(self.decay, (1 + self.updates) / (10 + self.updates))", "self.decay",
     "the average starts without warm-up", "tests/common/test_ema.py"),
    ("gan/train.py", "            settle(g_ema.module, generator, fixed_z, dtype)", "            pass",
     "the average draws with statistics of its start", "tests/gan/test_train.py"),
    ("gan/train.py", 'group["lr"] = learning_rate(lr, step / args.steps)', 'group["lr"] = lr',
     "the rates of GAN training never fall", "tests/gan/test_train.py -k 'run_folder or rates'"),
    ("common/ema.py", '{"updates": self.updates,', '{"updates": 0,', "a resume starts the warm-up again",
     "tests/common/test_ema.py"),
    ("common/checkpoint.py", "            os.fsync(file.fileno())\n", "", "a name is given before the bytes are safe",
     "tests/common/test_checkpoint.py"),
    ("common/checkpoint.py", "weights_only=True", "weights_only=False", "a checkpoint can run code",
     "tests/common/test_checkpoint.py"),
    ("common/checkpoint.py", "if expected not in (None, sha256(path)):", "if expected is None:",
     "a changed weight file passes the manifest", "tests/test_mistakes.py -k manifest"),
    ("common/checkpoint.py", 'if kind not in (None, content["kind"]):', "if False:",
     "a checkpoint of another network is taken", "tests/common/test_checkpoint.py"),
    ("common/files.py", "            temporary.unlink()", "            pass", "half-written files stay",
     "tests/test_mistakes.py -k full_disk"),
    ("common/files.py", "yield temporary\n        os.replace(temporary, path)", "yield path",
     "files are written in place", "tests/test_mistakes.py -k full_disk"),
    ("common/runlog.py", '        set_rng_state(content["rng"])\n', "", "a resume draws other random numbers",
     "tests/gan/test_train.py -k resumed"),
    ("common/runlog.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB",
     "two processes train in one folder", "tests/common/test_runlog.py"),
    ("common/runlog.py", "raise SystemExit(128 + stop)", "raise SystemExit(0)",
     "a stopped run looks like a finished one", "tests/diffusion/test_train.py -k stopped"),
    ("common/runlog.py", "if not value.isfinite().all():", "if False:", "spoiled weights replace good ones",
     "tests/common/test_runlog.py"),
    ("common/runlog.py", "if not math.isfinite(value):", "if math.isnan(value):", "an infinite loss is overlooked",
     "tests/common/test_runlog.py"),
    ("common/runlog.py", ' if row["step"] <= self.step]', "]", "a resume logs steps twice",
     "tests/diffusion/test_train.py -k killed"),
    ("common/runlog.py", 'content["log"]["sums"], content["log"]["counts"]', "{}, {}",
     "a resume forgets the steps since the last row", "tests/diffusion/test_train.py -k stopped"),
    ("common/runlog.py", "self._counts.get(name, 0) + 1", "max(self._counts.values(), default=0) + 1",
     "a metric is averaged over steps that it did not come with", "tests/common/test_runlog.py -k mean"),
    ("common/runlog.py", '        write_json(self.out / "args.json", self._settings)\n', "",
     "a run folder does not look like one", "tests/common/test_runlog.py"),
    ("common/runlog.py", "except BaseException:\n            if rank() == 0:",
     "except BaseException:\n            if True:", "a process that cannot begin removes the first one's files",
     "tests/common/test_runlog.py"),
    ("common/cli.py", 'mistake}", file=sys.stderr)\n        code = 2', 'mistake}", file=sys.stderr)\n        code = 1',
     "a user's mistake has another exit code", "tests/common/test_cli.py"),
    ("common/cli.py", "    logging.raiseExceptions = False", "    pass", "a full disk under stdout is a traceback",
     "tests/test_mistakes.py -k stdout"),
    ("common/cli.py", "args.epochs * (num_items // args.batch_size)", "args.epochs * num_items // args.batch_size",
     "an epoch counts the incomplete batch", "tests/common/test_cli.py"),
    ("common/images.py", ".mul(127.5).round()", ".mul(127.5)", "pixels are cut instead of rounded",
     "tests/common/test_images.py"),
    ("common/images.py", "or _stamp_of(path) != stamp", "", "images of other settings are taken for one's own",
     "tests/common/test_images.py"),
    ("common/datasets.py", "stat.st_ctime_ns", "stat.st_mtime_ns", "changed images of an old time come from the cache",
     "tests/common/test_datasets.py"),
    ("common/datasets.py", "if name in rows:", "if False:", "an image may have two labels",
     "tests/common/test_datasets.py"),
    ("common/datasets.py", 'ImageOps.exif_transpose(image.convert("RGB"))', 'image.convert("RGB")',
     "photographs lie on their side", "tests/common/test_datasets.py"),
    ("common/prepare.py", "np.where(labels == 10, 0, labels)", "labels % 9", "SVHN's labels are wrong",
     "tests/common/test_prepare.py -k svhn"),
    ("common/prepare.py", "    finally:\n        shutil.rmtree(hidden, ignore_errors=True)",
     "    finally:\n        pass", "a set that could not be built stays",
     "tests/test_mistakes.py -k 'full_disk and prepare'"),
    ("common/prepare.py", 'source.name.startswith("lfw")', "False", "a person is in training and validation",
     "tests/common/test_prepare.py -k lfw"),
    ("common/metrics.py", "- 2 * cross", "- cross", "the Frechet distance of equal sets is not 0",
     "tests/common/test_metrics.py"),
    # gan
    ("gan/losses.py", "relu(1 + fake_logits)", "relu(1 - fake_logits)", "the hinge loss calls drawn images real",
     "tests/gan/test_losses.py"),
    ("gan/losses.py", "return softplus(-fake_logits).mean()", "return -softplus(fake_logits).mean()",
     "G's loss saturates", "tests/gan/test_losses.py"),
    ("gan/losses.py", ".sum(dim=(1, 2, 3)).mean() / 2", ".mean() / 2", "R1 depends on the size of an image",
     "tests/gan/test_losses.py"),
    ("gan/losses.py", "with sdpa_kernel(SDPBackend.MATH):", "if True:", "R1 stops at attention",
     "tests/gan/test_losses.py"),
    ("gan/losses.py", "(real_logits - fake_anchor)", "(real_logits - real_anchor)",
     "LeCam holds logits near the average of their own kind", "tests/gan/test_losses.py"),
    ("gan/dcgan.py", "        if spectral_norm:  #", "        if False:  #", "nothing takes the place of BatchNorm",
     "tests/gan/test_models.py"),
    ("gan/augment.py", "(source >= 0) & (source < size)", "(source >= 0)", "a moved image repeats its last line",
     "tests/gan/test_augment.py"),
    ("gan/augment.py", "device=x.device) - length // 2", "device=x.device)", "the hole is never at the upper left",
     "tests/gan/test_augment.py"),
    ("gan/sagan.py", ", scale=1.0)", ")", "attention is scaled by the padded width", "tests/gan/test_models.py"),
    ("gan/sagan.py", "torch.zeros(1)", "torch.ones(1)", "attention starts at full strength",
     "tests/gan/test_models.py"),
    ("gan/train.py", "    d_optimiser.zero_grad(set_to_none=True)\n", "", "D's gradients add up over steps",
     "tests/gan/test_train.py -k by_hand"),
    ("gan/train.py", "weights=g_ema.module)", "weights=generator)", "inference takes the weights of the last step",
     "tests/gan/test_train.py -k run_folder"),
    ("gan/train.py", "d_total = d_total + R1_EVERY * args.r1", "d_total = d_total + args.r1",
     "R1 that comes seldom is too weak", "tests/gan/test_train.py -k by_hand"),
    ("gan/train.py", '        parts["anchors"] = anchors\n', "        pass\n", "a resume forgets LeCam's averages",
     "tests/gan/test_train.py -k penalties"),
    ("gan/train.py", "        average_statistics(anchors)\n", "", "each process has LeCam averages of its own",
     "tests/test_processes.py -k 'in_step and gan'"),
    ("gan/train.py", "judge = copy.deepcopy(discriminator)", "judge = discriminator",
     "a logged row changes D's running statistics", "tests/gan/test_train.py -k 'changes_nothing or health'"),
    ("gan/train.py", '{"attention": False} if args.no_attention', "{} if args.no_attention",
     "--no-attention does nothing", "tests/gan/test_train.py -k attention"),
    ("gan/inference.py", "generator = place(generator, device).eval()", "generator = place(generator, device)",
     "drawing depends on the rest of the batch", "tests/gan/test_inference.py"),
    # diffusion
    ("diffusion/schedule.py", ".clamp(max=0.999)", "", "the cosine schedule ends in a division by 0",
     "tests/diffusion/test_schedule.py"),
    ("diffusion/schedule.py", "signal * noise - sigma * x_0", "signal * noise + sigma * x_0",
     "the velocity has another sign", "tests/diffusion/test_schedule.py"),
    ("diffusion/loss.py", '(snr if prediction == "noise" else snr + 1)', "snr", "velocity is weighted like noise",
     "tests/diffusion/test_schedule.py"),
    ("diffusion/samplers.py", "(beta * (1 - alpha_bar_prev) / (1 - alpha_bar)).sqrt()", "beta.sqrt() * 1.5",
     "DDPM adds too much noise", "tests/diffusion/test_samplers.py"),
    ("diffusion/samplers.py", "(1 - alpha_bar_prev - sigma**2).sqrt()", "(1 - alpha_bar_prev).sqrt()",
     "stochastic DDIM adds noise to noise", "tests/diffusion/test_samplers.py"),
    ("diffusion/samplers.py", "torch.lerp(unconditional, conditional,", "torch.lerp(conditional, unconditional,",
     "guidance leads away from the label", "tests/diffusion/test_samplers.py"),
    ("diffusion/samplers.py", "step * (first + second) / 2", "step * first", "Heun's method is Euler's",
     "tests/diffusion/test_samplers.py"),
    ("diffusion/samplers.py", "sigmas[-1].clamp(max=SIGMA_MAX)", "sigmas[-1]", "Heun starts far beyond the data",
     "tests/diffusion/test_samplers.py"),
    ("diffusion/samplers.py", "(h / (2 * last_h))", "(h / last_h)", "DPM-Solver++ extrapolates too far",
     "tests/diffusion/test_samplers.py"),
    ("diffusion/unet.py", "label_emb * keep[:, None]", "label_emb", "no label is ever dropped",
     "tests/diffusion/test_unet.py"),
    ("diffusion/unet.py", "F.gelu(x + self.double_conv(x))", "F.gelu(self.double_conv(x))",
     "the residual connection is gone", "tests/diffusion/test_unet.py"),
    ("diffusion/unet.py", "torch.cat([skip, x], dim=1)", "torch.cat([x, skip], dim=1)",
     "released weights see skip connections in another order", "tests/diffusion/test_unet.py"),
    ("diffusion/attention.py", ".sub_(mean_i)", "", "bfloat16 attention passes on a wrong gradient",
     "tests/test_trainers.py -k 'bfloat16 and diffusion'"),
    ("diffusion/attention.py", "(q * dim**-0.5)", "q", "bfloat16 attention is not scaled",
     "tests/diffusion/test_unet.py"),
    ("diffusion/train.py", "args.lr * (step + 1) / args.warmup", "args.lr", "the rate has no warm-up",
     "tests/diffusion/test_train.py -k 'rate or by_hand'"),
    ("diffusion/train.py", "model.parameters(), 1.0)", "model.parameters(), 1e9)", "gradients are not clipped",
     "tests/diffusion/test_train.py -k by_hand"),
    ("diffusion/distill.py", "(x_end - ratio * x_t) / (end_signal - ratio * signal)", "x_0_middle",
     "the student copies the teacher's second step", "tests/diffusion/test_distill.py -k goes"),
    ("diffusion/distill.py", "/ (2 * r)", "/ r", "the teacher's method is not of second order",
     "tests/diffusion/test_distill.py -k second_order"),
    ("diffusion/distill.py", "stride * torch.randint", "torch.randint", "the student learns the teacher's times",
     "tests/diffusion/test_distill.py -k chain"),
    ("diffusion/loss.py", "snr.clamp(min=1) * (x_0", "(x_0", "late times of the student weigh as little as early ones",
     "tests/diffusion/test_distill.py -k hand"),
    ("diffusion/generate.py", "if self.distilled and guidance != 1:", "if False:", "a distilled network is guided",
     "tests/diffusion/test_distill.py -k guided"),
    ("diffusion/widen.py", "factor ** -0.25", "factor ** -0.5", "a widened network computes something else",
     "tests/diffusion/test_widen.py"),
    ("diffusion/compare.py", "if before.get(name) != value:", "if False:",
     "rows of other weights stand in one table", "tests/diffusion/test_compare.py -k refused"),
    # dann
    ("dann/grl.py", "return -ctx.coeff * grad", "return ctx.coeff * grad", "features learn to tell the domains apart",
     "tests/dann/test_networks.py"),
    ("dann/grl.py", "- 1\n", "- 0.5\n", "the reversal does not start at 0", "tests/dann/test_networks.py"),
    ("dann/losses.py", "SOURCE, TARGET = 0, 1", "SOURCE, TARGET = 1, 0", "the domains change places",
     "tests/dann/test_train.py -k by_hand"),
    ("dann/losses.py", " * confident).mean()", ").mean()", "doubtful digits are learnt", "tests/dann/test_networks.py"),
    ("dann/inputs.py", "SCALE[0] * min(1, ratio)", "SCALE[0]", "digits are never made smaller",
     "tests/dann/test_inputs.py"),
    ("dann/inputs.py", "return images * sign * uniform", "return images * uniform", "no image is inverted",
     "tests/dann/test_inputs.py"),
    ("dann/inputs.py", "cos * shear - sin", "cos * shear + sin", "images are mirrored or stretched, not turned",
     "tests/dann/test_inputs.py"),
    ("dann/teacher.py", "probabilities.mean(0).clamp(min=RAREST)", "1",
     "a digit that is seldom read dies out", "tests/dann/test_networks.py"),
    ("common/distributed.py", "message /= world_size()", "pass",
     "several processes sum their gradients", "tests/test_processes.py -k equal_one"),
    ("dann/teacher.py", "isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm)", "False",
     "the teacher's statistics never leave their start", "tests/dann/test_networks.py"),
    ("dann/train.py", "args.batch_size, 2 * args.seed + 1)", "args.batch_size, 2 * args.seed)",
     "source and target come in one order", "tests/dann/test_train.py -k orders"),
    ("dann/train.py", "            model.train()\n", "", "after a preview the network trains in eval mode",
     "tests/dann/test_train.py -k previews"),
    ("dann/train.py", 'key=lambda row: row["val"]', 'key=lambda row: row["step"]', "the oracle is the last preview",
     "tests/dann/test_train.py -k oracle"),
    ("dann/predict.py", "    model.eval()\n", "", "predictions depend on the rest of the batch",
     "tests/dann/test_inference.py"),
    ("dann/evaluate.py", "10 * digits.labels + predicted", "10 * predicted + digits.labels",
     "a confusion matrix has what is read in the place of what is", "tests/dann/test_evaluate.py"),
    ("dann/inference.py", "if rank():", "if False:", "every process writes the CSV file",
     "tests/dann/test_inference.py -k several"),
    ("dann/inference.py", "if args.out.exists():", "if False:", "a CSV file is overwritten",
     "tests/dann/test_inference.py"),
)]


def mutate(root: Path, mutation: Mutation) -> str:
    """Change the file below `root`; returns what it was."""
    path = root / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise SystemExit(f"{mutation.file}: {mutation.old!r} is there {text.count(mutation.old)} times, expected once")
    path.write_text(text.replace(mutation.old, mutation.new))
    return text


def caught(root: Path, mutation: Mutation) -> bool:
    """Say whether the mutation's tests fail in the copy `root`; an error of pytest itself counts for nothing."""
    log = root / "log.txt"
    child = os.fork()
    if not child:
        os.chdir(root)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *shlex.split(mutation.tests)]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 1):
        raise SystemExit(f"pytest {mutation.tests} did not run:\n{log.read_text()[-2000:]}")
    return code == 1


def main(words: list[str]) -> int:
    """Try each mutation that holds one of the words, or all."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.file + m.breaks for word in words)]
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True)
    survived = 0
    # A file that is changed and changed back within a second would be taken for the same by its bytecode.
    os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in listed.stdout.splitlines():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, root / name)
        for mutation in chosen:
            text = mutate(root, mutation)
            noticed = caught(root, mutation)
            (root / mutation.file).write_text(text)
            survived += not noticed
            print(f"{'caught  ' if noticed else 'SURVIVED'} {mutation.file}: {mutation.breaks}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} caught")
    return min(survived, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
