import numpy as np
import pytest

from pse_sdk.config import STFT
from pse_sdk.errors import SettingsError

torch = pytest.importorskip("torch")
from pse_sdk.training.corpus import Bank, Corpus  # noqa: E402
from pse_sdk.training.generated_noise import CLIP_SAMPLES, crowd, generated_noise  # noqa: E402
from pse_sdk.training.mixing import Mixer, MixingConfig  # noqa: E402

RATE = STFT.sample_rate
FOUR_CLIPS_HOURS = 4 * CLIP_SAMPLES / RATE / 3600


def tones(frequencies_hz, seconds=2.0):
    time = np.arange(int(seconds * RATE)) / RATE
    return [np.sin(2 * np.pi * frequency * time).astype(np.float32) for frequency in frequencies_hz]


@pytest.fixture(scope="module")
def corpus():
    """Ten people who hum between 300 and 1200 Hz, one in turns of silence, in a room with one echo."""
    room = np.zeros(400, np.float32)
    room[[0, 150]] = 1.0, 0.3
    return Corpus(Bank.of(tones(range(300, 1300, 100)), [1.0] * 10), Bank.of(tones([50]), [1.0]),
                  Bank.of([room], [1.0]))


def share_between(samples, low_hz, high_hz):
    power = np.abs(np.fft.rfft(samples)) ** 2
    frequency = np.fft.rfftfreq(len(samples), 1 / RATE)
    return power[(frequency > low_hz) & (frequency < high_hz)].sum() / power.sum()


def test_a_crowd_is_made_of_the_speakers_of_the_corpus(corpus):
    shares = [share_between(crowd(corpus, CLIP_SAMPLES, np.random.default_rng(seed)), 250, 1400) for seed in range(5)]
    assert np.mean(shares) > 0.5        # the floor is 3 dB below at the most


def test_a_crowd_holds_several_voices(corpus):
    spectrum = np.abs(np.fft.rfft(crowd(corpus, CLIP_SAMPLES, np.random.default_rng(3)))) ** 2
    frequency = np.fft.rfftfreq(CLIP_SAMPLES, 1 / RATE)
    each = np.array([spectrum[abs(frequency - hz) < 50].sum() for hz in range(300, 1300, 100)])
    assert each.max() < 0.6 * each.sum()


def test_the_same_seed_gives_the_same_noise_and_another_seed_another(corpus, tmp_path):
    made = {name: generated_noise(corpus, FOUR_CLIPS_HOURS, tmp_path / name, seed=seed).samples
            for name, seed in (("one", 1), ("again", 1), ("two", 2))}
    assert torch.equal(made["one"], made["again"]) and not torch.equal(made["one"], made["two"])


def test_as_many_clips_as_asked_none_silent_none_clipped(corpus, tmp_path):
    bank = generated_noise(corpus, FOUR_CLIPS_HOURS, tmp_path)
    peaks = bank.samples.view(-1, CLIP_SAMPLES).abs().amax(1)
    assert bank.n_clips == 4 and (peaks > 0.8 * 32767).all() and (peaks < 32767).all()


def test_what_was_made_is_read_again(corpus, tmp_path):
    generated_noise(corpus, FOUR_CLIPS_HOURS, tmp_path)
    path, = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    generated_noise(corpus, FOUR_CLIPS_HOURS, tmp_path)
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [before]


def test_a_torn_file_is_made_anew(corpus, tmp_path):
    whole = generated_noise(corpus, FOUR_CLIPS_HOURS, tmp_path).samples.clone()
    path, = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    assert torch.equal(generated_noise(corpus, FOUR_CLIPS_HOURS, tmp_path).samples, whole)


def test_a_cache_that_cannot_be_written_is_refused(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="--cache"):
        generated_noise(corpus, FOUR_CLIPS_HOURS, tmp_path / "file" / "cache")


def test_mixtures_hold_so_much_of_it_as_asked(corpus):
    """Real noise hums at 50 Hz here, what was made at 3 kHz."""
    plain = MixingConfig(length=32 * STFT.hop_length, clean_share=0, noise_only_share=1, second_noise_share=0,
                         synthetic_noise_share=0, band_limit_share=0, gap_share=0, noise_equaliser_db=0,
                         generated_noise_share=0.3)
    high = Bank.of(tones([3000]), [1.0])
    mixer = Mixer(Corpus(corpus.speech, corpus.noise, corpus.rooms, high), plain, seed=0)
    noises = torch.cat([mixer.batch(step, 100).noisy for step in range(0, 12, 2)]).numpy()
    share = np.mean([share_between(noise, 1500, 6000) > 0.5 for noise in noises])
    assert share == pytest.approx(0.3, abs=0.06)
