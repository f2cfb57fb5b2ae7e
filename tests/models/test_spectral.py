"""The spectral split against its definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spai.models.spectral import LowPass, low_pass_mask, split_frequencies


def test_published_mask_has_856_ones_half_a_bin_off_dc():
    mask = low_pass_mask(224, 16)
    assert mask.sum() == 856 and mask.dtype == torch.int64
    assert torch.equal(mask, mask.flip(0)) and torch.equal(mask, mask.T)
    assert mask[111, 111] == mask[112, 112] == mask[96, 112] == 1
    assert mask[111 - 16, 111] == 0 and mask[111 - 15, 111] == 1


@pytest.mark.parametrize("radius", [1, 4, 16, 40.5])
@given(seed=st.integers(0, 99))
def test_the_low_pass_equals_masking_the_whole_spectrum(radius, seed):
    image = torch.from_numpy(np.random.default_rng(seed).random((2, 3, 32, 32)))
    mask = low_pass_mask(32, radius).double()
    spectrum = torch.fft.fftshift(torch.fft.fft2(image), dim=(-2, -1))
    masked = [
        torch.fft.ifft2(torch.fft.ifftshift(spectrum * part, dim=(-2, -1))).real
        for part in (mask, 1 - mask)
    ]
    low, high = split_frequencies(image, LowPass(mask, dtype=torch.float64))
    torch.testing.assert_close(low, masked[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(high, masked[1], rtol=0, atol=1e-12)


def test_a_constant_image_loses_half_of_its_mean_to_neither_band():
    flat = torch.full((1, 3, 224, 224), 0.5)
    low, high = split_frequencies(flat, LowPass(low_pass_mask(224, 16)))
    torch.testing.assert_close(low, flat)
    torch.testing.assert_close(high, torch.zeros_like(flat), rtol=0, atol=1e-6)
