"""The algebra of the schedule, both ends of its time axis, and the losses."""

import math

import pytest
import torch

from diffusion.loss import diffusion_loss, quartile_means
from diffusion.schedule import PREDICTIONS, SCHEDULES, make_schedule


def test_linear_schedule_is_that_of_ddpm():
    schedule = make_schedule("linear")
    assert schedule.num_timesteps == 1000
    assert schedule.betas[0].item() == pytest.approx(1e-4)
    assert schedule.betas[-1].item() == pytest.approx(0.02)
    log_product = sum(math.log1p(-(1e-4 + i / 999 * (0.02 - 1e-4))) for i in range(1000))
    assert schedule.alphas_cumprod[-1].item() == pytest.approx(math.exp(log_product), rel=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_first_step_already_carries_noise_and_last_is_nearly_pure(name):
    schedule = make_schedule(name)
    assert 0.99 < schedule.alphas_cumprod[0] < 1
    assert 0 < schedule.alphas_cumprod[-1] < 1e-4
    assert (schedule.alphas_cumprod.diff() < 0).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_prediction_inverts_q_sample(prediction):
    schedule = make_schedule("linear")
    x_0, noise = torch.rand(3, 3, 4, 4) * 2 - 1, torch.randn(3, 3, 4, 4)
    t = torch.tensor([0, 300, 900])
    x_t = schedule.q_sample(x_0, t, noise)
    output = noise if prediction == "noise" else schedule.velocity(x_0, t, noise)
    torch.testing.assert_close(schedule.predict_x0(x_t, t, output, prediction), x_0, atol=2e-4, rtol=0)


def test_q_sample_has_the_variance_of_the_chain():
    # Sampling q(x_t | x_{t-1}) step by step (eq. 2) must give the variance of the closed form (eq. 4).
    schedule = make_schedule("linear")
    variance = 0.0
    for beta in schedule.betas[:400].double():
        variance = variance * (1 - beta) + beta
    t = torch.full((200_000,), 399)
    x_t = schedule.q_sample(torch.zeros(200_000, 1, 1, 1), t, torch.randn(200_000, 1, 1, 1))
    assert x_t.var().item() == pytest.approx(float(variance), rel=0.02)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weights_both_predictions_alike(prediction):
    # The same prediction of x_0 must have the same loss, whether the network predicts noise or velocity.
    schedule = make_schedule("cosine")
    x_0, noise = torch.rand(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    t = torch.tensor([20, 200, 500, 700, 900])
    guess = x_0 + 0.1

    signal, sigma = schedule.scales(t)
    guessed_noise = (schedule.q_sample(x_0, t, noise) - signal * guess) / sigma
    output = guessed_noise if prediction == "noise" else schedule.velocity(guess, t, guessed_noise)
    loss = diffusion_loss(output, x_0, noise, schedule, t, prediction, min_snr=True)
    expected = schedule.snr(t).clamp(max=5) * 0.01
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-6)


def test_plain_noise_loss_is_l_simple():
    schedule = make_schedule("linear")
    noise = torch.randn(4, 3, 2, 2)
    x_0, t = torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 500, 999])
    loss = diffusion_loss(torch.zeros_like(x_0), x_0, noise, schedule, t, "noise", min_snr=False)
    torch.testing.assert_close(loss, noise.square().mean(dim=(1, 2, 3)))


def test_quartile_means_split_time_into_four():
    means = quartile_means(torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0]), torch.tensor([0, 250, 500, 749, 999]), 1000)
    assert [means[f"loss_q{q}"].item() for q in range(4)] == [1.0, 2.0, 4.0, 7.0]


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="quadratic"):
        make_schedule("quadratic")
