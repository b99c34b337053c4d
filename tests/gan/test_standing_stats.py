"""Standing statistics: those of the averaged generator's own activations, and in what a run saves."""

import copy

import pytest
import torch

from common.ema import EMA
from gan.models import MODELS, build_generator
from gan.standing_stats import recalibrate_bn
from tests.trainers import same


def test_the_average_has_running_statistics_of_its_own():
    # Weights that jump from step to step: the activations of their average differ from those of each of them.
    torch.manual_seed(0)
    generator = build_generator({"model": "dcgan", "width": 8})
    average = EMA(generator, 0.5)
    for _ in range(20):
        torch.nn.init.normal_(generator.main[0].weight, std=0.1)
        generator(torch.randn(64, 100))
        average.update(generator)
    z = torch.randn(512, 100)
    recalibrate_bn(average.module, generator, z, torch.float32)
    with torch.no_grad():
        batches = [average.module.main[0](part[:, :, None, None]) for part in z.split(64)]
    norm = average.module.main[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert not average.module.training
    assert (norm.running_var < 0.7 * generator.main[1].running_var).all()  # not those of the network in training

    before = copy.deepcopy(average.module.state_dict())
    recalibrate_bn(average.module, generator, z, torch.float32)
    assert same(average.module.state_dict(), before)  # a second call changes nothing


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_saved_weights_generate_alike_in_training_and_eval_mode(model, run_gan, tmp_path):
    # Only the last of many steps is due, so the saved statistics are not left over from an earlier preview.
    run = run_gan(tmp_path / "run", model, 20, "--log-every", "20", "--sample-every", "20", "--save-every", "20",
                  "--g-lr", "1e-2")
    generator = build_generator({"model": model, "width": 8})
    generator.load_state_dict(torch.load(run / "last.pt", weights_only=True)["weights"])
    z = torch.randn(256, generator.z_dim)
    with torch.no_grad():
        evaluation, training = generator.eval()(z), generator.train()(z)
    assert (evaluation.mean((0, 2, 3)) - training.mean((0, 2, 3))).abs().max() < 0.05
    assert evaluation.std() == pytest.approx(training.std().item(), rel=0.1)
