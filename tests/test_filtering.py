import pytest

torch = pytest.importorskip("torch")
from pse_sdk.training.filtering import filtered  # noqa: E402


def sounds(batch=2, n_frames=5, n_bins=7, n_low=3, n_taps=3):
    torch.manual_seed(0)
    shapes = (batch, n_frames, 2, n_bins), (batch, n_frames, n_bins), (batch, n_frames, n_taps, 2, n_low), \
        (batch, n_frames + n_taps - 1, 2, n_low)
    return [torch.randn(*shape, dtype=torch.float64) for shape in shapes]


def test_it_is_the_sum_of_gains_and_complex_taps():
    noisy, gains, taps, history = sounds()
    enhanced = torch.view_as_complex(filtered(noisy, gains, taps, history).transpose(2, 3).contiguous())
    spectra, seen = (torch.view_as_complex(part.transpose(2, 3).contiguous()) for part in (noisy, history))
    filters = torch.view_as_complex(taps.transpose(3, 4).contiguous())
    expected = spectra * gains
    for tap in range(3):
        expected[..., :3] += filters[:, :, tap] * seen[:, tap:tap + 5]
    torch.testing.assert_close(enhanced, expected)


@pytest.mark.parametrize("n_frames, n_taps", [(1, 3), (5, 1), (6, 5)])
def test_its_derivatives_are_right(n_frames, n_taps):
    noisy, gains, taps, history = sounds(n_frames=n_frames, n_taps=n_taps)
    assert torch.autograd.gradcheck(lambda g, c: filtered(noisy, g, c, history),
                                    (gains.requires_grad_(), taps.requires_grad_()))
