"""Every sampler against cases with a known answer."""

import pytest
import torch

from diffusion.pipeline import Pipeline
from diffusion.samplers import ddim, ddim_times, ddpm, dpm_solver_pp
from diffusion.schedule import make_schedule

SCHEDULE = make_schedule("linear")


def gaussian_denoiser(mean, std):
    """Return the exact E[x_0 | x_t] for normal x_0: the prediction of a perfect network."""

    def denoise(x_t, t):
        alpha_bar = SCHEDULE.alphas_cumprod[t]
        gain = alpha_bar.sqrt() * std**2 / (alpha_bar * std**2 + 1 - alpha_bar)
        return mean + gain * (x_t - alpha_bar.sqrt() * mean)

    return denoise


def noise_source(count, shape=(1, 1, 1)):
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(count, *shape, generator=generator)


def chain(name, denoise, noise):
    """Run a sampler on the linear schedule."""
    if name == "ddpm":
        return ddpm(denoise, SCHEDULE, noise)
    return ddim(denoise, SCHEDULE, noise, 100) if name == "ddim" else dpm_solver_pp(denoise, SCHEDULE, noise, 40)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm-solver++"])
def test_gaussian_data_are_recovered(name):
    *_, last = chain(name, gaussian_denoiser(0.5, 0.3), noise_source(20_000))
    assert last.t == -1
    assert last.x.mean().item() == pytest.approx(0.5, abs=0.02)
    assert last.x.std().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm-solver++"])
def test_perfect_oracle_ends_at_x0(name):
    x_0 = torch.rand(1, 3, 4, 4).expand(2, 3, 4, 4) * 2 - 1
    states = list(chain(name, lambda x, t: x_0, noise_source(2, (3, 4, 4))))
    torch.testing.assert_close(states[-1].x, x_0)
    # Each state before it is x_0 with the noise level of its time.
    for state in states[:-1]:
        residual = state.x - SCHEDULE.alphas_cumprod[state.t].sqrt() * x_0
        sigma = (1 - SCHEDULE.alphas_cumprod[state.t]).sqrt()
        assert 0.6 < residual.std() / sigma < 1.4, state.t


def test_full_ddim_follows_the_probability_flow():
    # For Gaussian data the flow is x_t = a_t mean + s_t z with a constant z: 1000 DDIM steps must keep every z.
    states = list(ddim(gaussian_denoiser(0.0, 0.3), SCHEDULE, noise_source(1000), 1000))
    start, end = states[0].x.flatten(), states[-1].x.flatten()
    assert torch.corrcoef(torch.stack([start, end]))[0, 1] > 0.9999
    torch.testing.assert_close(end, 0.3 * start, atol=0.02, rtol=0)


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpm_solver_pp, 2)])
def test_order_of_convergence(sampler, order):
    # For Gaussian data x_t / std(x_t) is constant, so the error at a time that all step sizes share is known exactly.
    std, start, stop = 0.3, 999, 249

    def spread(t):
        alpha_bar = SCHEDULE.alphas_cumprod[t].double()
        return (alpha_bar * std**2 + 1 - alpha_bar).sqrt()

    def error(num_steps):
        states = {state.t: state.x.double() for state in sampler(
            gaussian_denoiser(0.0, std), SCHEDULE, noise_source(100), num_steps)}
        return (states[stop] - states[start] * spread(stop) / spread(start)).abs().mean().item()

    assert error(20) / error(100) == pytest.approx(5**order, rel=0.3)


def test_dpm_solver_pp_is_algorithm_2_of_the_paper():
    # In the paper's notation. The steps are uneven in log-SNR, so a wrong ratio r shows.
    def x_theta(t):
        return (t / 1000) ** 2

    alpha_bar = SCHEDULE.alphas_cumprod.double()
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    lam = (alpha / sigma).log()
    t = [999, 749, 499, 249]
    x = noise_source(2)().double()
    h = [None, *(lam[t[i]] - lam[t[i - 1]] for i in range(1, 4))]
    for i in range(1, 4):
        d = x_theta(t[i - 1])
        if i > 1:
            r = h[i - 1] / h[i]
            d = (1 + 1 / (2 * r)) * x_theta(t[i - 1]) - 1 / (2 * r) * x_theta(t[i - 2])
        x = sigma[t[i]] / sigma[t[i - 1]] * x - alpha[t[i]] * ((-h[i]).exp() - 1) * d
    states = list(dpm_solver_pp(lambda x, t: torch.full_like(x, x_theta(t)), SCHEDULE, noise_source(2), 4))
    torch.testing.assert_close(states[3].x.double(), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_pp])
def test_evaluations_and_states_of_a_chain(sampler):
    evaluated_at = []

    def denoise(x, t):
        evaluated_at.append(t)
        return x * 0

    states = list(sampler(denoise, SCHEDULE, noise_source(2), 4))
    assert [state.t for state in states] == [999, 749, 499, 249, -1]
    assert evaluated_at == [999, 749, 499, 249]


def test_ddim_times_start_at_pure_noise():
    assert ddim_times(1000, 1) == [999]
    assert ddim_times(1000, 4) == [999, 749, 499, 249]
    assert ddim_times(1000, 1000) == list(range(999, -1, -1))


class TwoBranches(torch.nn.Module):
    """Predict noise 0.2 with a label and 0.1 without."""

    def forward(self, x, t, labels, keep=None):
        kept = torch.ones(len(x)) if keep is None else keep.float()
        return (0.1 + 0.1 * kept)[:, None, None, None].expand_as(x)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 0.1), (1.0, 0.2), (3.0, 0.4)])
def test_guidance_extrapolates_from_the_unconditional_branch(scale, expected):
    x, labels, t = torch.zeros(2, 3, 4, 4), torch.tensor([1, 2]), torch.tensor([100, 100])
    x_0 = SCHEDULE.predict_x0(x, t, torch.full_like(x, expected), "noise").clamp(-1, 1)
    pipeline = Pipeline(TwoBranches(), SCHEDULE, {"prediction": "noise"})
    torch.testing.assert_close(pipeline.denoise(x, t, labels, scale), x_0)
