import numpy as np
import onnxruntime
import pytest

from pse_sdk.config import STFT
from pse_sdk.onnx_denoiser import session_options

onnx = pytest.importorskip("onnx")
from pse_sdk.training.dft import BIN_AT, BLOCK, N_BLOCKS, N_FOLDED, SHARE, FoldedDft, n_low_blocks  # noqa: E402
from pse_sdk.training.nodes import Nodes  # noqa: E402

SPECTRUM_TOLERANCE = 1e-4       # of spectra that reach 100: float32 products against a float64 FFT
FRAME_TOLERANCE = 2e-6           # of samples that reach 4
N_ROWS = 2 * N_BLOCKS


def run(nodes, **values):
    (name, value), = values.items()
    outputs = {"result": [2, N_FOLDED] if name == "frame" else [32, 16]}
    model = nodes.model({name: value.shape}, outputs).SerializeToString()
    return onnxruntime.InferenceSession(model, session_options()).run(None, {name: value})[0]


def folded_spectrum(frame):
    nodes = Nodes()
    nodes.reshape(FoldedDft(nodes).spectrum("frame"), 2, N_FOLDED, output="result")
    return run(nodes, frame=frame[None])


def frame_of(rows, mix):
    nodes = Nodes()
    nodes.reshape(FoldedDft(nodes).frame("rows", mix), 32, 16, output="result")
    return run(nodes, rows=rows[None].astype(np.float32)).ravel()


def folded(spectrum):
    """Complex bins [257] in the order of the graph [2, 272]."""
    return np.stack([spectrum.real, spectrum.imag])[:, BIN_AT].astype(np.float32)


def frame(seed):
    return np.random.default_rng(seed).standard_normal(STFT.n_fft).astype(np.float32)


def test_every_bin_is_there_and_counts_once():
    assert set(BIN_AT) == set(range(STFT.n_bins))
    np.testing.assert_array_equal(np.bincount(BIN_AT, SHARE), np.ones(STFT.n_bins))


@pytest.mark.parametrize("n_bins", [1, 2, 16, 17, 18, 33, 257])
def test_the_lowest_bins_come_first(n_bins):
    assert np.flatnonzero(n_bins > BIN_AT).max() < n_low_blocks(n_bins) * BLOCK <= n_bins + 2 * BLOCK


@pytest.mark.parametrize("seed", range(5))
def test_the_dft_is_rfft(seed):
    np.testing.assert_allclose(folded_spectrum(frame(seed)), folded(np.fft.rfft(frame(seed))), rtol=0,
                               atol=SPECTRUM_TOLERANCE)


@pytest.mark.parametrize("seed", range(5))
def test_the_inverse_is_irfft(seed):
    spectrum = np.fft.rfft(frame(seed))
    rows = folded(spectrum).reshape(N_ROWS, BLOCK)
    np.testing.assert_allclose(frame_of(rows, np.eye(N_ROWS)), frame(seed), rtol=0, atol=FRAME_TOLERANCE)


@pytest.mark.parametrize("bin_", [0, 1, 15, 16, 17, 128, 255, 256])
def test_a_sine_falls_into_its_bin(bin_):
    sine = np.cos(2 * np.pi * bin_ * np.arange(STFT.n_fft) / STFT.n_fft).astype(np.float32)
    power = SHARE * np.square(folded_spectrum(sine)).sum(0)
    assert power[bin_ == BIN_AT].sum() > 0.999 * power.sum()


def test_many_frames_go_there_and_back_at_once():
    nodes, frames = Nodes(), np.stack([frame(seed) for seed in range(3)])
    dft = FoldedDft(nodes)
    rows = nodes.reshape(dft.spectrum("frames"), -1, N_ROWS, BLOCK)
    nodes.reshape(dft.frame(rows, np.eye(N_ROWS)), 3, STFT.n_fft, output="result")
    model = nodes.model({"frames": frames.shape}, {"result": frames.shape}).SerializeToString()
    result, = onnxruntime.InferenceSession(model, session_options()).run(None, {"frames": frames})
    np.testing.assert_allclose(result, frames, rtol=0, atol=FRAME_TOLERANCE)


def test_rows_are_mixed_into_blocks():
    rng = np.random.default_rng(0)
    rows, mix = rng.standard_normal((7, BLOCK)), rng.standard_normal((N_ROWS, 7))
    np.testing.assert_allclose(frame_of(rows, mix), frame_of(mix @ rows, np.eye(N_ROWS)), rtol=0, atol=FRAME_TOLERANCE)
