import base64
import io
import re
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from pse_sdk.config import STFT
from pse_sdk.errors import AudioError, SettingsError
from pse_sdk.page import MAX_COLUMNS, N_COLOURS, PEAK, RANGE_DB, Row, Track, before_after_page, spectrogram_png

RATE = STFT.sample_rate
VOID = {"meta", "img"}


def tone(hz, seconds=0.5, level=0.25, rate=RATE):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def page_of(*tracks, rate=RATE, **texts):
    row = Row(texts.pop("row", "a clip"), [Track(f"version {i}", samples) for i, samples in enumerate(tracks)], rate)
    return before_after_page(texts.pop("title", "A page"), [row], texts.pop("table", []), texts.pop("notes", []))


def data_of(page, kind):
    return [base64.b64decode(text) for text in re.findall(rf'src="data:{kind};base64,([^"]*)"', page)]


def played(page):
    return [soundfile.read(io.BytesIO(wav)) for wav in data_of(page, "audio/wav")]


def picture(png):
    """Palette indices [height, width], after every checksum was checked."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place:place + 4])
        kind, content = png[place + 4:place + 8], png[place + 8:place + 8 + length]
        assert struct.unpack(">I", png[place + 8 + length:place + 12 + length]) == (zlib.crc32(kind + content),)
        chunks[kind] = content
        place += 12 + length
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:]


class Nesting(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.open, self.sources, self.texts = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "action", "srcset", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_needs_nothing_from_outside():
    page = page_of(tone(300), tone(400))
    assert all(source.startswith("data:") for source in Nesting(page).sources)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|WebSocket", page)
    assert "default-src 'none'" in page


def test_every_tag_that_opens_closes():
    assert Nesting(page_of(tone(300), tone(400), table=[["model", "dB"], ["tiny", "4"]], notes=["one"])).open == []


def test_text_stays_text():
    bad = '<img src=x onerror="alert(1)">&'
    page = page_of(tone(300), title=bad, row=bad, table=[[bad], [bad]], notes=[bad])
    row = Row("a clip", [Track(bad, tone(300), bad)], RATE)
    parsed = Nesting(page + before_after_page("A page", [row], [], []))
    assert all(source.startswith("data:") for source in parsed.sources)
    assert parsed.texts.count(bad) == 6 + 3     # two titles, a note, two cells, a row; a tab, a label, a caption
    assert bad not in page


def test_what_is_played_is_what_was_given_at_one_gain():
    loud, faint = tone(300, level=0.5), tone(400, level=0.05)
    (first, rate), (second, _) = played(page_of(loud, faint, rate=RATE))
    assert rate == RATE
    one_step_of_16_bits = 2**-15
    np.testing.assert_allclose(first, loud * (PEAK / np.abs(loud).max()), atol=one_step_of_16_bits)
    np.testing.assert_allclose(second, faint * (PEAK / np.abs(loud).max()), atol=one_step_of_16_bits)


def test_the_page_says_that_it_holds_audio():
    assert "This file holds 1 clip of audio (2 s)" in page_of(tone(300, seconds=2))


def test_a_table_has_a_head_and_its_cells():
    page = page_of(tone(300), table=[["model", "dB"], ["tiny", "4.1"]])
    assert "<thead><tr><th>model</th><th>dB</th></tr></thead>" in page
    assert "<tbody><tr><td>tiny</td><td>4.1</td></tr></tbody>" in page


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_a_tone_is_brightest_at_its_frequency(rate):
    indices = picture(spectrogram_png(tone(2000, seconds=1, rate=rate), rate))
    assert indices.shape[0] == STFT.n_bins
    from_below = STFT.n_bins - 1 - indices[:, indices.shape[1] // 2].argmax()
    assert from_below == round(2000 * STFT.n_fft / STFT.sample_rate)


def test_a_fainter_track_is_darker_beside_a_louder_one():
    loud, faint = (picture(png) for png in data_of(page_of(tone(500), 0.01 * tone(500)), "image/png"))
    assert int(loud.max()) - int(faint.max()) == pytest.approx((N_COLOURS - 1) * 40 / RANGE_DB, abs=1)


@pytest.mark.parametrize("n_samples", [1, 255, 256, 257, 100_000])
def test_any_length_makes_a_picture(n_samples):
    indices = picture(spectrogram_png(np.ones(n_samples, np.float32), RATE))
    assert 1 <= indices.shape[1] <= MAX_COLUMNS


def test_ten_minutes_make_a_picture_no_wider_than_allowed():
    assert picture(spectrogram_png(np.zeros(600 * RATE, np.float32), RATE)).shape[1] <= MAX_COLUMNS


def test_silence_and_nan_are_played_as_silence():
    for samples in (np.zeros(500, np.float32), np.full(500, np.nan, np.float32)):
        (heard, _), = played(page_of(samples))
        assert not heard.any()


@pytest.mark.parametrize("tracks", [[], [np.zeros(0)], [np.zeros((5, 2))], [np.zeros(5), np.zeros(6)]])
def test_tracks_that_cannot_be_compared_are_refused(tracks):
    with pytest.raises(AudioError, match="a clip"):
        page_of(*tracks)


def test_a_rate_that_cannot_be_is_refused():
    with pytest.raises(SettingsError):
        page_of(tone(300), rate=0)
