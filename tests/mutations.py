"""Break the code in sensible places, one at a time, and see whether the tests notice.

    python tests/mutations.py            # all, some five minutes on one core
    python tests/mutations.py unet grl   # those whose file or description contains one of the words

Works on a copy of the tracked files in a temporary folder. Prints for each mutation whether its tests failed, as they
must; exits with 1 if one survived. `test_mutations.py` checks that every pattern is still in its function.
"""

import ast
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
    """A pattern of a function, its replacement, what that breaks, and the tests (as for pytest) that must fail.

    place: "file:function", "file:Class.method", or "file:" for a pattern of the whole file.
    """

    place: str
    old: str
    new: str
    breaks: str
    tests: str


MUTATIONS = [Mutation(*row) for row in (
    # common
    ("common/batches.py:Batches._permutation", "* 1_000_003 + self.epoch", "* 1_000_003",
     "every epoch has the same order", "tests/common/test_batches.py"),
    ("common/batches.py:Batches.load_state_dict", "self._order = self._permutation()", "pass",
     "a resumed stream continues with the order of the first epoch", "tests/common/test_batches.py"),
    ("common/ema.py:EMA.update", "min(self.decay, (1 + self.updates) / (10 + self.updates))", "self.decay",
     "the average starts without warm-up", "tests/common/test_ema.py"),
    ("common/ema.py:EMA.state_dict", "self.updates,", "0,", "a resume repeats the warm-up of the average",
     "tests/common/test_ema.py"),
    ("common/checkpoint.py:save", "os.fsync(file.fileno())", "pass", "a file gets its name before its bytes are safe",
     "tests/common/test_checkpoint.py"),
    ("common/checkpoint.py:load", "weights_only=True", "weights_only=False", "a checkpoint can run code",
     "tests/common/test_checkpoint.py"),
    ("common/checkpoint.py:load", 'kinds and content["kind"] not in kinds', "False",
     "a checkpoint of another network is accepted", "tests/common/test_checkpoint.py"),
    ("common/checkpoint.py:_check_manifest", "if expected not in (None, sha256(path)):", "if expected is None:",
     "a changed weight file passes the manifest", "tests/test_mistakes.py -k manifest"),
    ("common/files.py:atomic_path", "temporary.unlink()", "pass", "half-written files stay",
     "tests/test_mistakes.py -k full_disk"),
    ("common/files.py:atomic_path", "yield temporary\n        os.replace(temporary, path)", "yield path",
     "files are written in place", "tests/test_mistakes.py -k full_disk"),
    ("common/files.py:require_new", "not force", "False", "an existing file is replaced",
     "tests/dann/test_inference.py"),
    ("common/randomness.py:seed_step", "seed, step, rank()", "seed, rank()", "every step draws the same noise",
     "tests/common/test_randomness.py"),
    ("common/randomness.py:seed_step", "seed, step, rank()", "seed, step", "all processes draw the same noise",
     "tests/common/test_randomness.py"),
    ("common/run.py:Run.steps", 'seed_step(settings["seed"], self.step)', "pass", "a resume draws other random numbers",
     "tests/gan/test_train.py -k resumed"),
    ("common/lr_schedule.py:lr_at", "(step + 1) / warmup", "1", "the rate has no warm-up",
     "tests/common/test_lr_schedule.py"),
    ("common/lr_schedule.py:lr_at", "min(1, progress)", "progress", "the rate becomes negative after the last step",
     "tests/common/test_lr_schedule.py"),
    ("common/lr_schedule.py:set_lr", 'group["lr"].fill_(lr)', "pass", "no rate ever falls on a GPU",
     "tests/common/test_device.py"),
    ("common/device.py:_Graph.__call__", "own.copy_(x)", "pass", "a replay computes with the inputs of the capture",
     "tests/common/test_device.py"),
    ("common/device.py:_Graph.__call__", "self.graph.replay()", "pass", "a GPU trains for four steps",
     "tests/common/test_device.py"),
    ("common/device.py:Captured.__call__", "*sorted(switches.items())", "", "one graph serves all values of a switch",
     "tests/common/test_device.py"),
    ("common/device.py:capturable", "saved | mine", "saved", "a CPU continues a run with the settings of a GPU",
     "tests/common/test_device.py"),
    ("common/lr_schedule.py:set_lr", 'group["lr"] = lr', "pass", "no rate ever falls",
     "tests/common/test_lr_schedule.py"),
    ("common/run_folder.py:RunFolder._claim", "lock_folder(self._lock)", "self.path.mkdir(parents=True, exist_ok=True)",
     "two processes train in one folder", "tests/common/test_run.py"),
    ("common/run.py:Run.steps", "raise SystemExit(128 + stop)", "raise SystemExit(0)",
     "a stopped run looks like a finished one", "tests/diffusion/test_train.py -k stopped"),
    ("common/run.py:Run.save", "not value.isfinite().all()", "False", "non-finite weights replace good ones",
     "tests/common/test_run.py"),
    ("common/run.py:Run._sane_means", "not math.isfinite(mean)", "False",
     "a metric that is no number is overlooked", "tests/common/test_run.py"),
    ("common/run.py:Run._sane_means", "abs(mean) > LARGEST_LOSS", "False",
     "a run with enormous losses goes on", "tests/common/test_run.py"),
    ("common/run_folder.py:RunFolder.open", ' if row["step"] <= step', "", "a resume logs steps twice",
     "tests/common/test_run.py"),
    ("common/metrics_log.py:MetricsLog.load_state_dict", 'in state["sums"].items()', "in ()",
     "a resume forgets the steps since the last row", "tests/diffusion/test_train.py -k stopped"),
    ("common/metrics_log.py:MetricsLog.add", "self._counts.get(name, 0)", "max(self._counts.values(), default=0)",
     "a metric is averaged over steps that lack it", "tests/common/test_run.py -k mean"),
    ("common/run_folder.py:RunFolder.open", 'write_json(self.path / "args.json", self.settings)', "pass",
     "a run folder does not look like one", "tests/common/test_run.py"),
    ("common/run_folder.py:RunFolder.abandon", "if rank() == 0:", "if True:",
     "a process that cannot start removes the files of the first one", "tests/common/test_run.py"),
    ("common/run_folder.py:RunFolder.load_checkpoint", "self.inputs.keys() and before[name] != value",
     "self.inputs.keys() and False", "a resume accepts other settings", "tests/common/test_run.py"),
    ("common/run_folder.py:RunFolder.load_checkpoint", 'content["inputs"].get(name) != value', "False",
     "a resume accepts other data", "tests/common/test_run.py"),
    ("common/distributed.py:average", "flat /= world_size()", "pass", "several processes sum their gradients",
     "tests/test_processes.py -k equal_one"),
    ("common/cli.py:run_main", 'mistake}", file=sys.stderr)\n        code = 2',
     'mistake}", file=sys.stderr)\n        code = 1', "a user's mistake has another exit code",
     "tests/common/test_cli.py"),
    ("common/cli.py:run_main", "logging.raiseExceptions = False", "pass", "a full disk under stdout is a traceback",
     "tests/test_mistakes.py -k stdout"),
    ("common/cli.py:finalize_settings", "(num_items // args.batch_size)", "num_items // args.batch_size",
     "an epoch counts the incomplete batch", "tests/common/test_cli.py"),
    ("common/images.py:to_uint8", ".mul(127.5).round()", ".mul(127.5)", "pixels are truncated instead of rounded",
     "tests/common/test_images.py"),
    ("common/image_folder.py:missing_images", "or found != stamp", "",
     "images of other settings are accepted", "tests/common/test_image_folder.py"),
    ("common/scores.py:frechet_distance", "- 2 * cross", "- cross", "the Frechet distance of equal sets is not 0",
     "tests/common/test_scores.py"),
    ("common/scores.py:kernel_distance", "k.sum() - k.trace()", "k.sum()", "the kernel distance is biased",
     "tests/common/test_scores.py -k kernel"),
    ("common/scores.py:fidelity_and_diversity", "k)[:, k]", "k)[:, k - 1]", "a vector is its own neighbour",
     "tests/common/test_scores.py -k fidelity"),
    ("common/scores.py:fidelity_and_diversity", "for x in (fake, real))", "for x in (real, fake))",
     "bad images lower recall", "tests/common/test_scores.py -k 'fidelity or alone'"),
    ("common/scores.py:fidelity_and_diversity", "in_real.any(1)", "in_fake.any(1)",
     "an odd generated image raises coverage", "tests/common/test_scores.py -k 'fidelity or outlier'"),
    # common/data
    ("common/data/folder.py:_listing_hash", "stat.st_ctime_ns", "stat.st_mtime_ns",
     "images changed with an old time stamp come from the cache", "tests/common/data/test_folder.py"),
    ("common/data/folder.py:_read_split", "if name in rows:", "if False:", "an image may have two labels",
     "tests/common/data/test_folder.py"),
    ("common/data/decode.py:open_rgb", "ImageOps.exif_transpose(file)", "file.copy()", "photographs lie on their side",
     "tests/common/data/test_decode.py"),
    ("common/data/decode.py:open_rgb", ">> 8", ">> 0", "16-bit images are white", "tests/common/data/test_decode.py"),
    ("common/data/decode.py:open_rgb", '"white"', '"black"', "transparent images are black",
     "tests/common/data/test_decode.py"),
    ("common/data/domains.py:split_name", "key != name", "False", "builtin-svhn is read from the data folder",
     "tests/common/data"),
    ("common/data/raw_digits.py:read_svhn", "np.where(labels == 10, 0, labels)", "labels % 9",
     "SVHN's labels are wrong", "tests/common/data/test_raw_digits.py -k svhn"),
    ("common/data/raw_faces.py:_read_partition", '{"0": "train", "1": "val"}', '{"1": "train", "0": "val"}',
     "CelebA's official splits are swapped", "tests/common/test_prepare.py -k celeba"),
    ("common/prepare.py:build", "    finally:\n        shutil.rmtree(hidden, ignore_errors=True)",
     "    finally:\n        pass", "a set that could not be built stays",
     "tests/test_mistakes.py -k 'full_disk and prepare'"),
    ("common/image_folder.py:generate_folder", "range(start, min(start + batch_size, len(names)))", "[*indices]",
     "a resumed command generates other bytes", "tests/common/test_image_folder.py"),
    # gan
    ("gan/train.py:main", "augmented=args.augment", "augmented=False", "--augment does nothing",
     "tests/gan/test_train.py -k augment"),
    ("gan/train.py:main", "before_save=recalibrate", "before_save=lambda: None",
     "a stopped run saves an average with stale running statistics", "tests/gan/test_train.py -k signal"),
    ("gan/train.py:main", "weights=g_ema.module", "weights=generator", "inference uses the weights of the last step",
     "tests/gan/test_train.py -k run_folder"),
    ("gan/train.py:main", '{"attention": False} if args.no_attention', "{} if args.no_attention",
     "--no-attention does nothing", "tests/gan/test_train.py -k attention"),
    ("gan/train.py:train_step", "    d_optimizer.zero_grad(set_to_none=True)\n", "", "D's gradients add up over steps",
     "tests/gan/test_train.py -k by_hand"),
    ("gan/train.py:main", "        g_ema.update(generator)\n", "", "the average is that of the first weights",
     "tests/test_trainers.py -k average"),
    ("gan/train.py:main", "metrics = metrics | health(", "metrics |= health(", "on a GPU the log is one row late",
     "tests/test_capture.py -k dcgan"),
    ("diffusion/train.py:main", "return train_step(model,", "ema.update(model)\n        return train_step(model,",
     "on a GPU the average keeps the decay of the capture", "tests/test_capture.py -k diffusion"),
    ("gan/monitor.py:health", "torch.cat([train, val])", "torch.cat([val, train])", "the comparison is turned round",
     "tests/gan/test_monitor.py -k health"),
    ("gan/monitor.py:health", "copy.deepcopy(discriminator)", "discriminator",
     "a logged row changes D's running statistics", "tests/gan -k 'changes_nothing or health'"),
    ("common/losses.py:hinge_d", "relu(1 + fake_logits)", "relu(1 - fake_logits)", "the hinge loss calls fakes real",
     "tests/gan/test_losses.py"),
    ("gan/losses.py:non_saturating_g", "softplus(-fake_logits).mean()", "-softplus(fake_logits).mean()",
     "G's loss saturates", "tests/gan/test_losses.py"),
    ("gan/augment.py:translate", "(source >= 0) & (source < size)", "(source >= 0)",
     "a shifted image repeats its last line", "tests/gan/test_augment.py"),
    ("gan/augment.py:cutout", "device=x.device) - length // 2", "device=x.device)",
     "the hole is never at the upper left", "tests/gan/test_augment.py"),
    ("gan/sagan.py:SelfAttention.forward", ", scale=1.0)", ")", "attention is scaled by the padded width",
     "tests/gan/test_models.py"),
    ("gan/sagan.py:SelfAttention.__init__", "torch.zeros(1)", "torch.ones(1)", "attention starts at full strength",
     "tests/gan/test_models.py"),
    ("gan/inference.py:main", "place(generator, device).eval()", "place(generator, device)",
     "an image depends on the rest of its batch", "tests/gan/test_inference.py"),
    # diffusion
    ("diffusion/schedule.py:make_schedule", ".clamp(max=0.999)", "", "the cosine schedule divides by 0 at its end",
     "tests/diffusion/test_schedule.py"),
    ("diffusion/schedule.py:Schedule.velocity", "signal * noise - sigma * x_0", "signal * noise + sigma * x_0",
     "the velocity has the wrong sign", "tests/diffusion/test_schedule.py"),
    ("diffusion/loss.py:diffusion_loss", '(snr if prediction == "noise" else snr + 1)', "snr",
     "velocity is weighted like noise", "tests/diffusion/test_schedule.py"),
    ("diffusion/loss.py:x0_loss", "snr.clamp(min=1) * ", "", "late times of the student weigh as little as early ones",
     "tests/diffusion/test_distill.py -k hand"),
    ("diffusion/samplers.py:ddpm", "(beta * (1 - alpha_bar_prev) / (1 - alpha_bar)).sqrt()", "beta.sqrt() * 1.5",
     "DDPM adds too much noise", "tests/diffusion/test_samplers.py"),
    ("diffusion/samplers.py:ddim_step", "+ end_sigma * predicted_noise", "- end_sigma * predicted_noise",
     "DDIM subtracts the noise that it should keep", "tests/diffusion/test_samplers.py"),
    ("diffusion/pipeline.py:Pipeline.denoise", "torch.lerp(unconditional, conditional,",
     "torch.lerp(conditional, unconditional,", "guidance leads away from the label",
     "tests/diffusion/test_samplers.py"),
    ("diffusion/samplers.py:dpm_solver_pp", "(h / (2 * last_h))", "(h / last_h)", "DPM-Solver++ extrapolates too far",
     "tests/diffusion/test_samplers.py"),
    ("diffusion/unet.py:ConditionalUNet.embed", "label_emb * keep[:, None]", "label_emb", "no label is ever dropped",
     "tests/diffusion/test_unet.py"),
    ("diffusion/unet.py:DoubleConv.forward", "x + self.double_conv(x)", "self.double_conv(x)",
     "the residual connection is gone", "tests/diffusion/test_unet.py"),
    ("diffusion/unet.py:Up.forward", "[skip, x]", "[x, skip]", "released weights get skip connections in another order",
     "tests/diffusion/test_unet.py"),
    ("diffusion/layers.py:_Normalise.forward", "addcmul_(mean, mean", "addcmul_(mean, norm",
     "group norm on a GPU has another deviation", "tests/diffusion/test_unet.py"),
    ("diffusion/layers.py:_Normalise.backward", "torch.addcmul(inverse * h_mean, times_x, mean)", "times_x * mean",
     "group norm on a GPU has a wrong gradient", "tests/diffusion/test_unet.py"),
    ("diffusion/layers.py:upsampling", "align_corners=True", "align_corners=False",
     "a GPU upsamples to other positions", "tests/diffusion/test_unet.py"),
    ("diffusion/pipeline.py:sample", ".clone()", "", "a GPU's second prediction overwrites the first",
     "tests/diffusion/test_inference.py"),
    ("diffusion/attention.py:_StoredMapAttention.backward", ".sub_(mean_i)", "",
     "bfloat16 attention has a wrong gradient", "tests/test_trainers.py -k 'bfloat16 and diffusion'"),
    ("diffusion/attention.py:attend", "(q * dim**-0.5)", "q", "bfloat16 attention is not scaled",
     "tests/diffusion/test_unet.py"),
    ("diffusion/train.py:train_step", "model.parameters(), 1.0)", "model.parameters(), 1e9)",
     "gradients are not clipped", "tests/diffusion/test_train.py -k by_hand"),
    ("diffusion/distill.py:distill_target", "(x_end - ratio * x_t) / (end_signal - ratio * signal)", "x_0_middle",
     "the student copies the teacher's second step", "tests/diffusion/test_distill.py -k ends"),
    ("diffusion/distill.py:distill_target", "/ (2 * r)", "/ r", "the teacher's method is not of second order",
     "tests/diffusion/test_distill.py -k second_order"),
    ("diffusion/distill.py:step_times", "unfold(0, 3, 2)", "unfold(0, 3, 1)",
     "the student learns the teacher's times", "tests/diffusion/test_distill.py -k every_time"),
    ("diffusion/distill.py:main", ", model_args=model_args)", ")", "a student's previews are its teacher's",
     "tests/diffusion/test_distill.py -k two_stages"),
    ("diffusion/adversarial.py:train_step", "inputs=list(student.model.parameters())", "", "D learns what G learns",
     "tests/diffusion/test_adversarial.py -k by_hand"),
    ("diffusion/adversarial.py:Heads.forward", "label_emb(labels)", "label_emb(labels * 0)", "D does not see the label",
     "tests/diffusion/test_adversarial.py -k heads"),
    ("diffusion/adversarial.py:main", "weights=ema.module", "weights=model", "inference uses the last step's weights",
     "tests/diffusion/test_adversarial.py -k killed"),
    ("diffusion/pipeline.py:Pipeline.check", "setting != self.distilled", "setting[:2] != self.distilled[:2]",
     "a distilled network is guided", "tests/diffusion/test_distill.py -k sampled_as"),
    ("diffusion/pipeline.py:Pipeline.check", "setting != self.distilled", "setting[2] != self.distilled[2]",
     "a student takes steps it never learned", "tests/diffusion/test_distill.py -k sampled_as"),
    ("diffusion/evaluate.py:score", "(fake, real[second]))", "(fake, real))", "real digits are compared with their own",
     "tests/diffusion/test_evaluate.py -k balls"),
    ("diffusion/evaluate.py:score", "[:len(first)]]", "]", "coverage grows with the number of generated digits",
     "tests/diffusion/test_evaluate.py -k balls"),
    ("diffusion/evaluate.py:main", "accuracy(fake, train_set", "accuracy(fake._replace(labels=predicted), train_set",
     "wrong digits do not lower the score of a classifier that learns from them",
     "tests/diffusion/test_evaluate.py -k prints"),
    ("diffusion/classifier.py:classification_accuracy", "(count)", "(10**9)",
     "real digits teach more because they are more", "tests/diffusion/test_evaluate.py -k equally_many_digits"),
    ("diffusion/classifier.py:classification_accuracy", '("cas_real", real)', '("cas_real", val)',
     "a classifier reads the digits that trained it", "tests/diffusion/test_evaluate.py -k equally_many_digits"),
    # dann
    ("dann/grl.py:_GradientReversal.backward", "-ctx.coeff * grad", "ctx.coeff * grad",
     "features learn to separate the domains", "tests/dann/test_networks.py"),
    ("dann/grl.py:grl_coeff", "- 1", "- 0.5", "the reversal does not start at 0", "tests/dann/test_networks.py"),
    ("dann/losses.py:", "SOURCE, TARGET = 0, 1", "SOURCE, TARGET = 1, 0", "the domains are swapped",
     "tests/dann/test_step.py -k by_hand"),
    ("dann/losses.py:pseudo_label_loss", " * confident).mean()", ").mean()", "doubtful digits become labels",
     "tests/dann/test_networks.py tests/dann/test_labels.py"),
    ("dann/inputs.py:scale_range", "SCALE[0] * min(1, ratio)", "SCALE[0]", "digits are never made smaller",
     "tests/dann/test_inputs.py"),
    ("dann/inputs.py:intensity", "gain, offset = sign * _uniform", "gain, offset = _uniform", "no image is inverted",
     "tests/dann/test_inputs.py"),
    ("dann/inputs.py:geometry", "cos * shear - sin", "cos * shear + sin",
     "images are mirrored or stretched, not rotated", "tests/dann/test_inputs.py"),
    ("dann/train.py:train", "progress >= 1 - args.target_only", "progress >= args.target_only",
     "the last phase is the first", "tests/dann/test_train.py -k target_alone"),
    ("dann/step.py:train_step", "if coeff is not None and labelled is not None", "if coeff is not None",
     "the last phase asks for source images", "tests/dann/test_train.py -k test_run_folder"),
    ("dann/inputs.py:geometry", "cos / width", "cos", "digits keep their width",
     "tests/dann/test_inputs.py -k narrows"),
    ("dann/inputs.py:neighbours", "columns.flip(0)", "columns", "the right edge stays", "tests/dann/test_inputs.py"),
    ("dann/inputs.py:photograph", "_uniform(images, *BLUR, 1, 1, 1).clamp(max=1)", "_uniform(images, *BLUR, 1, 1, 1)",
     "images are blurred more than once", "tests/dann/test_inputs.py"),
    ("dann/teacher.py:Alignment.forward", "self.wanted / shares", "1", "a rarely predicted digit dies out",
     "tests/dann/test_networks.py tests/dann/test_labels.py"),
    ("dann/teacher.py:Alignment.forward", "self.shares.clamp(min=RAREST)", "self.shares",
     "a digit that nobody predicts wins", "tests/dann/test_networks.py -k hopeless"),
    ("dann/teacher.py:Alignment.forward", "MOMENTUM", "1", "the alignment is that of one batch",
     "tests/dann/test_networks.py -k rare"),
    ("dann/teacher.py:Alignment.forward", "strength > 0", "strength >= 0", "the shares drift with the teacher",
     "tests/dann/test_networks.py -k kept"),
    ("dann/teacher.py:alignment_strength", "progress / FADE", "0 * progress", "equal shares last to the end",
     "tests/dann/test_networks.py -k fades"),
    ("dann/train.py:train", "distributed.average_buffers(alignment)", "pass", "processes align differently",
     "tests/test_processes.py -k dann"),
    ("dann/teacher.py:pseudo_labels", "isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)", "False",
     "the teacher's running statistics never change", "tests/dann/test_networks.py tests/dann/test_labels.py"),
    ("dann/teacher.py:pseudo_labels", " & (progress >= WAIT)", "", "an untrained network labels images",
     "tests/dann/test_networks.py -k statistics_of_the_batch"),
    ("dann/train.py:train", "2 * seed + i", "2 * seed", "source and target come in the same order",
     "tests/dann/test_train.py -k orders"),
    ("dann/train.py:train", "            model.train()\n", "", "after a preview the network trains in eval mode",
     "tests/dann/test_train.py -k previews"),
    ("dann/train.py:train", "weights=scores.kept", "weights=scores.network",
     "the last network is kept, not the selected one", "tests/dann/test_scoring.py -k selected"),
    ("dann/train.py:train", ", scores.before_save", "", "before the first preview a checkpoint has untrained weights",
     "tests/dann/test_scoring.py -k first_preview"),
    ("dann/scoring.py:write_result", 'best(rows, "val")', 'best(rows, "step")', "the oracle is the last preview",
     "tests/dann/test_scoring.py -k oracle"),
    ("common/data/folder.py:ImageSet.sample", "manual_seed(0)", "manual_seed(0).seed()",
     "every run is judged on other images", "tests/dann/test_scoring.py -k held_out"),
    ("dann/scoring.py:best", "reversed(rows)", "rows", "of equal previews the first counts",
     "tests/dann/test_scoring.py -k best"),
    ("dann/scoring.py:Scores.add", "            self._keep()", "            pass", "the first network is kept",
     "tests/dann/test_scoring.py -k selected"),
    ("dann/scoring.py:Scores.add", "rank() == 0 and ", "", "processes keep different networks",
     "tests/dann/test_scoring.py -k processes"),
    ("dann/scoring.py:Scores.add", "nan_to_num(0, 0, 0).softmax", "softmax", "a diverging run ends in a traceback",
     "tests/dann/test_scoring.py -k diverges"),
    ("dann/scoring.py:Scores.finish", 'self.criterion == "step" and ', "", "the result is not of the kept network",
     "tests/dann/test_scoring.py -k kept"),
    ("dann/scoring.py:Scores.state_dict", '{"kept": self.kept.state_dict()}', "{}", "a resume forgets the kept network",
     "tests/dann/test_scoring.py -k selected"),
    ("dann/validators.py:information", "_entropy(mean) - _entropy", "-_entropy", "one digit for all is as good as ten",
     "tests/dann/test_validators.py -k extremes"),
    ("dann/validators.py:bnm", "min(probabilities.shape) * ", "", "the nuclear norm exceeds its bound",
     "tests/dann/test_validators.py -k extremes"),
    ("dann/validators.py:snd", "F.normalize(outputs.target_probabilities, dim=1)", "outputs.target_probabilities",
     "unsure predictions are not similar to themselves", "tests/dann/test_validators.py -k between"),
    ("dann/validators.py:snd", "    similarities.fill_diagonal_(-1)", "    pass", "an image is its own neighbour",
     "tests/dann/test_validators.py -k between"),
    ("dann/validators.py:dev", "slice(count // 2, None)", "slice(0, None)",
     "the classifier of domains weighs digits that it was fitted on", "tests/dann/test_validators.py -k dev"),
    ("dann/validators.py:dev", " * fitted.stop / (len(features) - fitted.stop)", "",
     "the density ratio depends on the numbers of images", "tests/dann/test_validators.py -k dev"),
    ("dann/validators.py:dev", "eta * (weights.mean() - 1)", "0", "the risk has no control variate",
     "tests/dann/test_validators.py -k dev"),
    ("dann/validators.py:class_ami", "random_state=0", "random_state=None", "the clusters differ from call to call",
     "tests/dann/test_validators.py -k same"),
    ("dann/validators.py:compute_validators", "outputs.source_labels is not None or ", "",
     "validators of the source are never there", "tests/dann/test_validators.py -k same"),
    ("dann/validate.py:_accuracy", 'row.get("test", row.get("val"))', 'row.get("val", row.get("test"))',
     "validators are compared on the split of the oracle", "tests/dann/test_validate.py -k tables"),
    ("dann/validate.py:compare", ' if run["mode"] == "dann"', "", "the table of steps has runs of mode source",
     "tests/dann/test_validate.py -k tables"),
    ("dann/validate.py:_correlation", "None in values or ", "", "a missing validator ends in a traceback",
     "tests/dann/test_validate.py -k lack"),
    ("dann/validate.py:_chosen", "all(key in row for row in rows)", "True", "a missing validator ends in a traceback",
     "tests/dann/test_validate.py -k tables"),
    ("dann/predict.py:predict", "    model.eval()\n", "", "predictions depend on the rest of the batch",
     "tests/dann/test_inference.py"),
    ("dann/evaluate.py:column_of", 'result["mode"] == "target"', "False", "a network of a target counts for one source",
     "tests/dann/test_evaluate.py -k target"),
    ("dann/evaluate.py:_cell", 'of_seed.setdefault(run["seed"], run)', 'of_seed[run["seed"]] = run',
     "of the same run on a target the last counts", "tests/dann/test_evaluate.py -k target"),
    ("dann/evaluate.py:to_markdown", "statistics.mode(", "max(", "a column is titled by its longest run",
     "tests/dann/test_evaluate.py -k length"),
    ("dann/evaluate.py:_other_steps", 'cell["steps"] == steps', "True", "runs of other lengths are compared in silence",
     "tests/dann/test_evaluate.py -k length"),
    ("dann/evaluate.py:build_table", 'pair.endswith(f" -> {own}")', "pair == own",
     "a network of a target is in no pair", "tests/dann/test_evaluate.py -k target"),
    ("dann/evaluate.py:map_table", "for source in domains for target in domains",
     "for target in domains for source in domains", "pairs are not sorted by source",
     "tests/dann/test_evaluate.py -k map_as"),
    ("dann/evaluate.py:_map", "for cell in adapted) else", "for cell in []) else", "the map shows val for test",
     "tests/dann/test_evaluate.py -k map_as"),
    ("dann/heatmap.py:draw", "targets.index(target), sources.index(source), *cell",
     "sources.index(source), targets.index(target), *cell", "source and target are swapped",
     "tests/dann/test_heatmap.py"),
    ("dann/heatmap.py:text_colour", "luminance > 0.18", "luminance > 0.5", "numbers fade into their colour",
     "tests/dann/test_heatmap.py"),
    ("dann/inference.py:main", "if rank():", "if False:", "every process writes the CSV file",
     "tests/dann/test_inference.py -k several"),
    ("dann/inference.py:main", "require_new(args.force, args.out)", "pass", "a CSV file is overwritten",
     "tests/dann/test_inference.py"),
    ("common/cli.py:parse_training_args", "        args = parse_after(before, source)", "        pass",
     "--config is read and not used", "tests/test_config.py"),
    ("common/cli.py:parse_training_args", "[*stored, *argv]", "[*argv, *stored]", "flags beside --config lose",
     "tests/test_config.py -k win"),
    ("common/cli.py:parse_training_args", "if flag in typed", "if flag == 'epochs' and flag in typed",
     "--seeds beside --config is refused because of a seed that nobody typed", "tests/test_config.py -k seeds"),
    ("common/cli.py:parse_training_args", "before[name] != getattr(args, name)", "False",
     "--recipe beside --config changes its name alone", "tests/test_config.py -k defaults"),
    ("common/cli.py:parse_training_args", "LEADING & typed", "LEADING & before.keys() & vars(args).keys()",
     "a recipe that nobody typed replaces that of --config", "tests/test_config.py -k settings_are"),
    ("common/cli.py:parse_training_args", ' - {"data"}', "", "another --model comes with other data",
     "tests/test_config.py -k defaults"),
    ("common/cli.py:parse_training_args", "    del args.config", "    pass",
     "a run of before --config cannot be resumed", "tests/test_config.py -k win"),
    ("common/run_folder.py:read_config", "settings.keys() ^ names", "names - settings.keys()",
     "a setting of another version is dropped in silence", "tests/test_config.py -k version"),
    ("common/run_folder.py:read_config", """({"data"} if settings["data"] != "builtin" else ())""", "()",
     "a released file asks for the data folder of another machine", "tests/test_config.py -k place"),
    ("common/run_folder.py:read_config", """ if settings["data"] != "builtin" else ()""", "",
     "a network of embedded data is trained again on others", "tests/test_config.py -k place"),
    ("common/compare.py:labels_of", " - UNRELATED", "", "runs differ in the names of their folders",
     "tests/common/test_compare.py -k legend"),
    ("common/compare.py:labels_of", "len(set(labels)) == len(labels) and ", "", "two runs have one name in the legend",
     "tests/common/test_compare.py -k legend"),
    ("common/compare.py:main", ".resolve()", "", "one run is drawn twice", "tests/common/test_compare.py -k alone"),
    ("dann/recipes.py:complete", 'settings["teacher"] is False', "False",
     "without a teacher the last phase has no loss", "tests/dann/test_recipes.py -k nothing_needs"),
    ("dann/evaluate.py:_cell", ', "parts"', "", "runs of other recipes are averaged", "tests/dann/test_evaluate.py"),
    ("common/compare.py:main", "if count > 1", "", "a panel shows one run alone",
     "tests/common/test_compare.py -k panel"),
    ("common/metrics_log.py:overlay", "moving_average(values)", "values", "curves are not smoothed",
     "tests/common/test_compare.py -k panel"),
    ("common/metrics_log.py:overlay", "            text.set_parse_math(False)", "            pass",
     "a $ in the name of a folder is a traceback", "tests/common/test_compare.py -k any_name"),
)]


def source_of(text: str, function: str) -> str:
    """Return the source of a function, of a method ("Class.method"), or of the whole file ("")."""
    node = ast.parse(text)
    for name in filter(None, function.split(".")):
        node = next(child for child in ast.walk(node) if getattr(child, "name", None) == name)
    return "".join(text.splitlines(keepends=True)[node.lineno - 1:node.end_lineno]) if function else text


def mutated(text: str, mutation: Mutation) -> str:
    """Return a file's text with the mutation; ValueError unless its pattern occurs once in its function."""
    source = source_of(text, mutation.place.split(":")[1])
    if source.count(mutation.old) != 1:
        raise ValueError(f"{mutation.place}: {mutation.old!r} occurs {source.count(mutation.old)} times, expected once")
    return text.replace(source, source.replace(mutation.old, mutation.new))


def caught(root: Path, mutation: Mutation) -> bool:
    """Say whether the mutation's tests fail in the copy `root`; SystemExit if pytest could not run them."""
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
    """Try the mutations that contain one of the words, or all."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.place + m.breaks for word in words)]
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True)
    survived = 0
    # Bytecode of a file that changes twice within a second would look valid.
    os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in listed.stdout.splitlines():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, root / name)
        for mutation in chosen:
            path = root / mutation.place.split(":")[0]
            text = path.read_text()
            path.write_text(mutated(text, mutation))
            noticed = caught(root, mutation)
            path.write_text(text)
            survived += not noticed
            print(f"{'caught  ' if noticed else 'SURVIVED'} {mutation.place}: {mutation.breaks}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} caught")
    return min(survived, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
