"""The random network: always the same, and no other random number depends on it."""

import numpy as np
import torch

from gan.features import features


def test_features_are_the_same_at_every_call_and_in_every_batch(smooth):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    found = features(smooth)
    assert (found.shape, found.dtype) == ((len(smooth), 512), np.float32)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_allclose(features(smooth.repeat(4, 1, 1, 1))[-len(smooth):], found, rtol=1e-4, atol=1e-5)


def test_images_differ(smooth):
    found = features(torch.cat([smooth[:1], smooth[:2]]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert abs(found[0] - found[2]).max() > 1e-2
