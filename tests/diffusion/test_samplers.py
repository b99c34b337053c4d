"""Every sampler against cases with a known answer."""

import pytest
import torch

from diffusion.samplers import ddim, ddim_times, ddpm, guided_denoiser
from diffusion.schedule import make_schedule

SCHEDULE = make_schedule("linear")


def gaussian_denoiser(mean, std):
    """The exact E[x_0 | x_t] when x_0 is normal: what a perfect network predicts."""

    def denoise(x_t, t):
        alpha_bar = SCHEDULE.alphas_cumprod[t][:, None, None, None]
        gain = alpha_bar.sqrt() * std**2 / (alpha_bar * std**2 + 1 - alpha_bar)
        return mean + gain * (x_t - alpha_bar.sqrt() * mean)

    return denoise


def noise_source(count, shape=(1, 1, 1)):
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(count, *shape, generator=generator)


def chains(denoise, count=20_000):
    return {
        "ddpm": lambda: ddpm(denoise, SCHEDULE, noise_source(count)),
        "ddim": lambda: ddim(denoise, SCHEDULE, noise_source(count), 100),
        "ddim eta 1": lambda: ddim(denoise, SCHEDULE, noise_source(count), 500, eta=1.0),
    }


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddim eta 1"])
def test_gaussian_data_come_back(name):
    *_, last = chains(gaussian_denoiser(0.5, 0.3))[name]()
    assert last.t == -1
    assert last.x.mean().item() == pytest.approx(0.5, abs=0.02)
    assert last.x.std().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddim eta 1"])
def test_perfect_oracle_ends_at_x0(name):
    x_0 = torch.rand(1, 3, 4, 4).expand(2, 3, 4, 4) * 2 - 1
    sampler = {"ddpm": lambda: ddpm(lambda x, t: x_0, SCHEDULE, noise_source(2, (3, 4, 4))),
               "ddim": lambda: ddim(lambda x, t: x_0, SCHEDULE, noise_source(2, (3, 4, 4)), 10),
               "ddim eta 1": lambda: ddim(lambda x, t: x_0, SCHEDULE, noise_source(2, (3, 4, 4)), 10, eta=1.0)}
    states = list(sampler[name]())
    torch.testing.assert_close(states[-1].x, x_0)
    # On the way, each state is x_0 with the noise level of its time.
    for state in states[:-1]:
        residual = state.x - SCHEDULE.alphas_cumprod[state.t].sqrt() * x_0
        sigma = (1 - SCHEDULE.alphas_cumprod[state.t]).sqrt()
        assert 0.6 < residual.std() / sigma < 1.4, state.t


def test_full_ddim_follows_the_probability_flow():
    # For Gaussian data the flow is x_t = a_t mean + s_t z with one z: 1000 DDIM steps must keep each z in place.
    states = list(ddim(gaussian_denoiser(0.0, 0.3), SCHEDULE, noise_source(1000), 1000))
    start, end = states[0].x.flatten(), states[-1].x.flatten()
    assert torch.corrcoef(torch.stack([start, end]))[0, 1] > 0.9999
    torch.testing.assert_close(end, 0.3 * start, atol=0.02, rtol=0)


def test_ddim_error_falls_linearly_with_the_steps():
    # DDIM is a first-order solver: ten times the steps, about a tenth of the error.
    def error(num_steps):
        *_, last = ddim(gaussian_denoiser(0.0, 0.3), SCHEDULE, noise_source(1000), num_steps)
        *_, exact = ddim(gaussian_denoiser(0.0, 0.3), SCHEDULE, noise_source(1000), 1000)
        return (last.x - exact.x).abs().mean().item()

    assert 5 < error(10) / error(80) < 14


def test_ddim_times_start_at_pure_noise():
    assert ddim_times(1000, 1) == [999]
    assert ddim_times(1000, 4) == [999, 749, 499, 249]
    assert ddim_times(1000, 1000) == list(range(999, -1, -1))
    with pytest.raises(ValueError, match="1001"):
        ddim_times(1000, 1001)


class TwoBranches(torch.nn.Module):
    """Predicts noise 0.2 with a label and 0.1 without."""

    def forward(self, x, t, labels, keep=None):
        kept = torch.ones(len(x)) if keep is None else keep.float()
        return (0.1 + 0.1 * kept)[:, None, None, None].expand_as(x)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 0.1), (1.0, 0.2), (3.0, 0.4)])
def test_guidance_extrapolates_from_the_unconditional_branch(scale, expected):
    x, t = torch.zeros(2, 3, 4, 4), torch.full((2,), 100)
    denoise = guided_denoiser(TwoBranches(), SCHEDULE, torch.tensor([1, 2]), scale, "noise")
    noise = torch.full_like(x, expected)
    torch.testing.assert_close(denoise(x, t), SCHEDULE.predict_x0(x, t, noise, "noise").clamp(-1, 1))
