"""Every sampler against cases with a known answer."""

import pytest
import torch

from diffusion.samplers import ddim, ddim_times, ddpm, dpm_solver_pp, guided_denoiser, heun, karras_times
from diffusion.schedule import make_schedule

SCHEDULE = make_schedule("linear")


def gaussian_denoiser(mean, std, schedule=SCHEDULE):
    """The exact E[x_0 | x_t] when x_0 is normal: what a perfect network predicts."""

    def denoise(x_t, t):
        alpha_bar = schedule.alphas_cumprod[t]
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
        "dpm-solver++": lambda: dpm_solver_pp(denoise, SCHEDULE, noise_source(count), 40),
        "heun": lambda: heun(denoise, SCHEDULE, noise_source(count), 100),
    }


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddim eta 1", "dpm-solver++", "heun"])
def test_gaussian_data_come_back(name):
    *_, last = chains(gaussian_denoiser(0.5, 0.3))[name]()
    assert last.t == -1
    assert last.x.mean().item() == pytest.approx(0.5, abs=0.02)
    assert last.x.std().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddim eta 1", "dpm-solver++", "heun"])
def test_perfect_oracle_ends_at_x0(name):
    x_0 = torch.rand(1, 3, 4, 4).expand(2, 3, 4, 4) * 2 - 1
    sampler = {"ddpm": lambda: ddpm(lambda x, t: x_0, SCHEDULE, noise_source(2, (3, 4, 4))),
               "ddim": lambda: ddim(lambda x, t: x_0, SCHEDULE, noise_source(2, (3, 4, 4)), 10),
               "ddim eta 1": lambda: ddim(lambda x, t: x_0, SCHEDULE, noise_source(2, (3, 4, 4)), 10, eta=1.0),
               "dpm-solver++": lambda: dpm_solver_pp(lambda x, t: x_0, SCHEDULE, noise_source(2, (3, 4, 4)), 10),
               "heun": lambda: heun(lambda x, t: x_0, SCHEDULE, noise_source(2, (3, 4, 4)), 10)}
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


@pytest.mark.parametrize(("sampler", "order", "start", "stop"),
                         [(ddim, 1, 999, 249), (dpm_solver_pp, 2, 999, 249), (heun, 2, 930, 0)])
def test_order_of_convergence(sampler, order, start, stop):
    # For Gaussian data x_t / std(x_t) stays what it was: the error at a time common to all is known exactly.
    std = 0.3

    def spread(t):
        alpha_bar = SCHEDULE.alphas_cumprod[t].double()
        return (alpha_bar * std**2 + 1 - alpha_bar).sqrt()

    def error(num_steps):
        states = {state.t: state.x.double() for state in sampler(
            gaussian_denoiser(0.0, std), SCHEDULE, noise_source(100), num_steps)}
        return (states[stop] - states[start] * spread(stop) / spread(start)).abs().mean().item()

    assert error(20) / error(100) == pytest.approx(5**order, rel=0.3)


def test_dpm_solver_pp_is_algorithm_2_of_the_paper():
    # In the paper's own letters, with steps so uneven in log-SNR that a wrong ratio r shows.
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


@pytest.mark.parametrize(("sampler", "states_at", "evaluated_at"), [
    (ddim, [999, 749, 499, 249], [999, 749, 499, 249]),
    (dpm_solver_pp, [999, 749, 499, 249], [999, 749, 499, 249]),
    (heun, [930, 695, 217, 0], [930, 695, 695, 217, 217, 0, 0]),
])
def test_evaluations_and_states_of_a_chain(sampler, states_at, evaluated_at):
    seen = []

    def denoise(x, t):
        seen.append(t)
        return x * 0

    states = list(sampler(denoise, SCHEDULE, noise_source(2), 4))
    assert [state.t for state in states] == [*states_at, -1]
    assert seen == evaluated_at


def test_ddim_times_start_at_pure_noise():
    assert ddim_times(1000, 1) == [999]
    assert ddim_times(1000, 4) == [999, 749, 499, 249]
    assert ddim_times(1000, 1000) == list(range(999, -1, -1))
    with pytest.raises(ValueError, match="1001"):
        ddim_times(1000, 1001)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_karras_times_are_even_in_the_seventh_root_of_sigma(schedule):
    sigmas = (1 / make_schedule(schedule).alphas_cumprod.double() - 1).sqrt()
    times = karras_times(make_schedule(schedule), 10)
    roots = sigmas[times] ** (1 / 7)
    assert sigmas[times[0]].item() == pytest.approx(80, rel=0.1)
    assert times[-1] == 0
    torch.testing.assert_close(roots, torch.linspace(roots[0], roots[-1], 10, dtype=torch.float64), rtol=0, atol=0.02)


def test_karras_times_never_repeat():
    for num_steps in (1, 2, 100, 500, 999):
        times = karras_times(SCHEDULE, num_steps)
        assert len(times) == num_steps
        assert times == sorted(set(times), reverse=True)
        assert times[-1] == 0 or num_steps == 1
    assert karras_times(SCHEDULE, 1000) == list(range(999, -1, -1))
    with pytest.raises(ValueError, match="1001"):
        karras_times(SCHEDULE, 1001)


def test_heun_brings_gaussian_data_back_from_a_schedule_that_ends_far_beyond_sigma_80():
    schedule = make_schedule("cosine")  # to 20,000, from where a straight step would miss the data
    *_, last = heun(gaussian_denoiser(0.5, 0.3, schedule), schedule, noise_source(20_000), 30)
    assert last.x.mean().item() == pytest.approx(0.5, abs=0.02)
    assert last.x.std().item() == pytest.approx(0.3, abs=0.02)


class TwoBranches(torch.nn.Module):
    """Predicts noise 0.2 with a label and 0.1 without."""

    def forward(self, x, t, labels, keep=None):
        kept = torch.ones(len(x)) if keep is None else keep.float()
        return (0.1 + 0.1 * kept)[:, None, None, None].expand_as(x)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 0.1), (1.0, 0.2), (3.0, 0.4)])
def test_guidance_extrapolates_from_the_unconditional_branch(scale, expected):
    x, t = torch.zeros(2, 3, 4, 4), 100
    denoise = guided_denoiser(TwoBranches(), SCHEDULE, torch.tensor([1, 2]), scale, "noise")
    noise = torch.full_like(x, expected)
    torch.testing.assert_close(denoise(x, t), SCHEDULE.predict_x0(x, torch.tensor([t, t]), noise, "noise").clamp(-1, 1))


@pytest.mark.parametrize(("t", "expected"), [(99, 0.2), (100, 0.4), (500, 0.4), (501, 0.2)])
def test_guidance_only_in_its_interval(t, expected):
    x = torch.zeros(2, 3, 4, 4)
    denoise = guided_denoiser(TwoBranches(), SCHEDULE, torch.tensor([1, 2]), 3.0, "noise", (100, 500))
    noise = torch.full_like(x, expected)
    torch.testing.assert_close(denoise(x, t), SCHEDULE.predict_x0(x, torch.tensor([t, t]), noise, "noise").clamp(-1, 1))
