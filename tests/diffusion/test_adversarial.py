"""The adversarial stage: a step by hand, its heads, resume, and mistakes."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import relu

from common import checkpoint
from common.data.folder import ImageSet
from common.errors import UserError
from common.images import save_image
from diffusion import adversarial
from diffusion.pipeline import Pipeline, Setting, load_pipeline
from diffusion.schedule import make_schedule
from diffusion.unet import KIND, ConditionalUNet
from tests.trainers import content, killed, same

MODEL_ARGS = {"width": 8, "prediction": "velocity", "schedule": "cosine"}
FLAGS = ["--batch-size", "8", "--steps", "4", "--log-every", "2", "--sample-every", "4", "--save-every", "2",
         "--device", "cpu"]


@pytest.fixture
def student():
    torch.manual_seed(0)
    model = ConditionalUNet(8)
    torch.nn.init.normal_(model.outc.weight)
    return Pipeline(model, make_schedule("cosine"), MODEL_ARGS)


def test_a_step_by_hand(student):
    teacher, heads = replace(student, model=copy.deepcopy(student.model).requires_grad_(False)), adversarial.Heads(8)
    G, D = copy.deepcopy(student), copy.deepcopy(heads)
    # Plain descent shows the gradients themselves.
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (student.model, heads)]
    by_hand = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (G.model, D)]
    real, labels = torch.rand(6, 3, 28, 28) * 2 - 1, torch.arange(6)
    before = copy.deepcopy(teacher.model.state_dict())
    torch.manual_seed(1)
    metrics = adversarial.train_step(student, optimizers[0], teacher, heads, optimizers[1], real, labels,
                                     dtype=torch.float32)

    torch.manual_seed(1)

    def judge(images):
        t = torch.randint(0, 600, (6,))
        x_t = teacher.schedule.q_sample(images, t, torch.randn(6, 3, 28, 28))
        return D(teacher.model.encode(x_t, teacher.model.embed(t, labels)), labels)

    real_logits = judge(real)
    fake_logits = judge(G.denoise(torch.randn(6, 3, 28, 28), torch.full((6,), 999), labels, 1.0))
    d_loss = sum(relu(1 - r).mean() + relu(1 + f).mean() for r, f in zip(real_logits, fake_logits, strict=True)) / 4
    g_loss = -sum(f.mean() for f in fake_logits) / 4
    d_gradients = torch.autograd.grad(d_loss, list(D.parameters()), retain_graph=True)
    g_gradients = torch.autograd.grad(g_loss, list(G.model.parameters()))
    for network, gradients, optimizer in ((D, d_gradients, by_hand[1]), (G.model, g_gradients, by_hand[0])):
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        if network is not D:
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    torch.testing.assert_close(metrics["d_loss"], d_loss.detach())
    torch.testing.assert_close(metrics["g_loss"], g_loss.detach())
    torch.testing.assert_close(dict(student.model.named_parameters()), dict(G.model.named_parameters()))
    torch.testing.assert_close(dict(heads.named_parameters()), dict(D.named_parameters()))
    assert same(teacher.model.state_dict(), before)


def test_g_learns_all_of_its_weights_in_bf16(student):
    teacher, heads = replace(student, model=copy.deepcopy(student.model).requires_grad_(False)), adversarial.Heads(8)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (student.model, heads)]
    adversarial.train_step(student, optimizers[0], teacher, heads, optimizers[1], torch.randn(4, 3, 28, 28),
                           torch.arange(4), dtype=torch.bfloat16)
    assert all(parameter.grad is not None for parameter in student.model.parameters())


def test_heads_look_at_every_map_and_at_the_label():
    torch.manual_seed(0)
    heads = adversarial.Heads(8)
    labels = torch.tensor([3, 7])
    maps = [torch.randn(2, channels, size, size) for channels, size in ((8, 28), (16, 14), (32, 7), (32, 3))]
    before = heads(maps, labels)
    assert [tuple(logits.shape) for logits in before] == [(2, size, size) for size in (28, 14, 7, 3)]
    for i in range(4):
        changed = [torch.randn_like(x) if j == i else x for j, x in enumerate(maps)]
        assert [not torch.equal(*logits) for logits in zip(heads(changed, labels), before, strict=True)] == [
            j == i for j in range(4)]
    for embedding in heads.label_emb:
        torch.nn.init.normal_(embedding.weight)
    three, four = heads(maps, labels), heads(maps, torch.tensor([4, 7]))
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(three, four, strict=True))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(three, four, strict=True))


def save(path, model_args):
    checkpoint.save(path, {"kind": KIND, "model_args": MODEL_ARGS | model_args,
                           "weights": ConditionalUNet(8).state_dict()})
    return path


@pytest.fixture(scope="module")
def files(digits_dir, tmp_path_factory):
    """Digits, a student, a teacher, and a folder of 20 generated images."""
    folder = tmp_path_factory.mktemp("adversarial")
    save(folder / "student.pt", {"distilled": ["ddim", 2, 1.0]})
    save(folder / "teacher.pt", {})
    (folder / "data").symlink_to(digits_dir)
    (folder / "generated").mkdir()
    for i in range(20):
        save_image(torch.full((3, 28, 28), 12 * i, dtype=torch.uint8), folder / "generated" / f"{i % 10}_{i:03d}.png")
    return folder


def run(files, out, *more):
    names = {"student": "student.pt", "teacher": "teacher.pt", "data": "data", "generated": "generated"}
    flags = [f"--{flag}={files / name}" for flag, name in names.items()]
    return adversarial.main([*flags, f"--out={out}", *FLAGS, *more])


@pytest.mark.slow
def test_killed_and_resumed_equals_unbroken_and_inference_needs_no_flag(files, tmp_path):
    assert run(files, tmp_path / "whole") == 0
    with killed(adversarial, 3):
        run(files, tmp_path / "broken")
    assert content(tmp_path / "broken")["step"] == 2
    run(files, tmp_path / "broken", "--resume", "auto")
    assert same(*(content(tmp_path / name)["parts"] for name in ("whole", "broken")))
    for name in ("samples/0000004.png", "done"):
        assert (tmp_path / "whole" / name).exists()
    assert same(content(tmp_path / "whole")["weights"], content(tmp_path / "whole")["parts"]["ema"]["module"])
    assert load_pipeline(tmp_path / "whole" / "last.pt", torch.device("cpu")).setting == Setting("ddim", 1, 1)


def test_half_of_the_digits_are_real():
    def digits(count, value):
        images = torch.full((count, 3, 28, 28), value, dtype=torch.uint8)
        return ImageSet(images, torch.full((count,), value), ["x"] * count)

    for real, generated, expected in ((50, 20, 20), (5, 20, 5)):
        images, labels, names = adversarial.mixed(digits(real, 1), digits(generated, 2))
        assert labels.tolist() == [1] * expected + [2] * generated == images[:, 0, 0, 0].tolist()
        assert len(names) == len(labels)


def test_a_resume_knows_the_generated_digits_by_their_content(files, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(files / "generated", moved)
    assert run(files, tmp_path / "run", "--steps", "2") == 0
    assert run(files, tmp_path / "run", "--resume", "auto", f"--generated={moved}") == 0
    save_image(torch.full((3, 28, 28), 99, dtype=torch.uint8), moved / "0_000.png")
    with pytest.raises(UserError, match="another content of --generated"):
        run(files, tmp_path / "run", "--resume", "auto", f"--generated={moved}")


def test_a_distilled_teacher_is_refused(files, tmp_path):
    with pytest.raises(UserError, match=r"--teacher: .*student.pt is distilled and knows few times"):
        run(files, tmp_path / "run", f"--teacher={files / 'student.pt'}")
    assert not (tmp_path / "run").exists()
