"""What the checks share: the device, exact and repeatable arithmetic, and a line that is always shown."""

import pytest
import torch


@pytest.fixture(scope="session")
def device(request):
    """The GPU; with --device cpu the processor, to try the checks."""
    return torch.device(request.config.getoption("--device") or "cuda")


@pytest.fixture(autouse=True)
def repeatable():
    """Make cuDNN choose the same exact kernels in all runs; afterwards, all settings are what they were."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    settings = [(cudnn, "deterministic", True), (cudnn, "benchmark", False), (cudnn, "allow_tf32", False),
                (matmul, "allow_tf32", False)]
    before = [getattr(owner, name) for owner, name, _ in settings]
    for owner, name, value in settings:
        setattr(owner, name, value)
    yield
    for (owner, name, _), value in zip(settings, before, strict=True):
        setattr(owner, name, value)


@pytest.fixture
def say(capfd):
    """Print a measurement, whether the test passes or not."""
    def say(text: str) -> None:
        with capfd.disabled():
            print(f"\n  {text}", end="", flush=True)

    return say
