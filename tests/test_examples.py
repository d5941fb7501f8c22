import importlib.util
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
TOLERANCE = 1e-6        # one session with one thread against one with several


@pytest.fixture(scope="module")
def ten_lines():
    spec = importlib.util.spec_from_file_location("ten_lines", EXAMPLES / "ten_lines.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_wav(path, samples, rate=16_000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


def read_wav(path):
    with wave.open(str(path)) as file:
        assert file.getparams()[:3] == (1, 2, 16_000)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def run(*arguments):
    """The program in a process of its own, which must not have imported pse_sdk."""
    code = ("import runpy, sys\n"
            f"sys.argv = {['ten_lines.py', *map(str, arguments)]!r}\n"
            f"runpy.run_path({str(EXAMPLES / 'ten_lines.py')!r}, run_name='__main__')\n"
            "assert 'pse_sdk' not in sys.modules\n")
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("n_samples", [0, 1, 255, 256, 257, 511, 512, 48_000])
def test_ten_lines_agree_with_the_enhancer(ten_lines, enhancer, tiny_model, noisy, n_samples):
    samples = noisy[:n_samples]
    ours = ten_lines.enhance(str(tiny_model), samples)
    assert ours.shape == samples.shape and ours.dtype == np.float32
    np.testing.assert_allclose(ours, enhancer.enhance(samples, 16_000), rtol=0, atol=TOLERANCE)


def test_ten_lines_are_about_ten(ten_lines):
    lines = (EXAMPLES / "ten_lines.py").read_text().split("def enhance", 1)[1].split("\n\n", 1)[0].splitlines()
    assert len([line for line in lines[1:] if line.strip() and '"""' not in line]) <= 10


def test_ten_lines_enhance_a_wav_without_pse_sdk(enhancer, tiny_model, noisy, tmp_path):
    samples = np.rint(noisy * 2**15)
    write_wav(tmp_path / "noisy.wav", samples)
    result = run(tiny_model, tmp_path / "noisy.wav", tmp_path / "enhanced.wav")
    assert result.returncode == 0, result.stderr
    expected = enhancer.enhance((samples / 2**15).astype(np.float32), 16_000) * 2**15
    assert np.abs(read_wav(tmp_path / "enhanced.wav") - expected).max() <= 0.5 + TOLERANCE * 2**15


@pytest.mark.parametrize("rate, channels", [(48_000, 1), (16_000, 2)])
def test_ten_lines_refuse_what_they_cannot_read(tiny_model, tmp_path, rate, channels):
    write_wav(tmp_path / "noisy.wav", np.zeros(200), rate, channels)
    result = run(tiny_model, tmp_path / "noisy.wav", tmp_path / "enhanced.wav")
    assert result.returncode == 1 and "expected 16 kHz" in result.stderr
    assert not (tmp_path / "enhanced.wav").exists()


def test_ten_lines_without_arguments_say_how_to_use_them():
    result = run()
    assert result.returncode == 1 and "noisy.wav" in result.stderr


# The same model file in another language.

NODE_MODULES = EXAMPLES.parent / "build" / "node" / "node_modules"


@pytest.fixture
def node(tmp_path):
    """Runs enhance.mjs from a folder that has onnxruntime-node, as a user's has."""
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    if not (NODE_MODULES / "onnxruntime-node").is_dir():
        pytest.skip("no onnxruntime-node in build/node; .ci/run installs it where npm is")
    shutil.copy(EXAMPLES / "enhance.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    return lambda *arguments: subprocess.run(["node", str(tmp_path / "enhance.mjs"), *map(str, arguments)],
                                             capture_output=True, text=True, check=False)


@pytest.mark.parametrize("n_samples", [0, 1, 257, 48_000])
def test_javascript_agrees_with_python(node, enhancer, tiny_model, noisy, tmp_path, n_samples):
    samples = np.rint(noisy[:n_samples] * 2**15)
    write_wav(tmp_path / "noisy.wav", samples)
    result = node(tiny_model, tmp_path / "noisy.wav", tmp_path / "enhanced.wav")
    assert result.returncode == 0, result.stderr
    expected = enhancer.enhance((samples / 2**15).astype(np.float32), 16_000)
    written = read_wav(tmp_path / "enhanced.wav") / 2**15
    assert written.shape == expected.shape
    np.testing.assert_allclose(written, expected, rtol=0, atol=1e-4)


def test_javascript_knows_the_delay_of_every_size():
    from pse_sdk.config import STFT
    assert f"DELAY = {STFT.delay}," in (EXAMPLES / "enhance.mjs").read_text()


@pytest.mark.parametrize("rate, channels", [(48_000, 1), (16_000, 2)])
def test_javascript_refuses_what_it_cannot_read(node, tiny_model, tmp_path, rate, channels):
    write_wav(tmp_path / "noisy.wav", np.zeros(200), rate, channels)
    result = node(tiny_model, tmp_path / "noisy.wav", tmp_path / "enhanced.wav")
    assert result.returncode == 1 and "expected 16 kHz" in result.stderr
    assert not (tmp_path / "enhanced.wav").exists()


def test_javascript_is_at_most_sixty_lines():
    assert len((EXAMPLES / "enhance.mjs").read_text().splitlines()) <= 60
