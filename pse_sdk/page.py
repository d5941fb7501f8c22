"""One HTML page to hear and see what an enhancer does: before and after, side by side, with nothing from outside.

The page is a single string. Audio and pictures are inside it as data URIs, the script is a few lines in it, and its
content security policy forbids the browser to load anything else, so it works from a file and sends nothing anywhere.
"""

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import soundfile

from .audio import check_sample_rate, replace_damage, resample
from .config import STFT
from .errors import AudioError
from .stft import power_spectrogram

RANGE_DB = 75.0             # of a spectrogram, from its darkest to its brightest colour
N_COLOURS = 64              # more are not seen, and cost space
MAX_COLUMNS = 900           # of a picture; longer tracks keep the loudest frame of each group
PEAK = 0.9

# Dark to bright, equally spaced; between them colours lie on straight lines.
_COLOURS = np.array([(6, 8, 24), (38, 20, 84), (96, 26, 116), (160, 44, 104), (218, 74, 72), (248, 136, 40),
                     (252, 206, 88), (252, 250, 214)], np.float64)


@dataclass(frozen=True, eq=False)
class Track:
    """One version of a clip: as recorded, as enhanced by some model, or clean."""

    label: str
    samples: np.ndarray     # [T] mono
    caption: str = ""       # a few words or figures below the label


@dataclass(frozen=True, eq=False)
class Row:
    """One clip in its versions, the one before enhancement first. All tracks have one length and one rate."""

    title: str
    tracks: Sequence[Track]
    sample_rate: int


def before_after_page(title: str, rows: Sequence[Row], table: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A page with a table, and for every row players that share one position, and spectrograms.

    Args:
        table: rows of cells, the head first, as `format_table` takes them; empty for none.
        notes: paragraphs between the title and the table.

    All text is escaped. A row's tracks are scaled by one common gain, so that their levels compare; the colours of its
    spectrograms are relative to its loudest sound.

    Raises:
        AudioError: a row without tracks, a track that is empty or not mono, or tracks of different lengths.
        SettingsError: a sample rate that cannot be.
    """
    prepared = [_prepare(row) for row in rows]
    seconds = sum(len(row.tracks[0].samples) / row.sample_rate for row in rows)
    paragraphs = "".join(f"<p>{escape(note)}</p>" for note in notes)
    sections = "".join(_section(row, tracks, i) for i, (row, tracks) in enumerate(zip(rows, prepared, strict=True)))
    return _PAGE.format(
        title=escape(title), notes=paragraphs, table=table_html(table), sections=sections, style=STYLE, script=_SCRIPT,
        privacy=_PRIVACY.format(clips="1 clip" if len(rows) == 1 else f"{len(rows)} clips", seconds=seconds))


def spectrogram_png(samples: np.ndarray, sample_rate: int, loudest: float | None = None) -> bytes:
    """A PNG of the power spectrogram, low frequencies below, up to 8 kHz.

    Args:
        loudest: power of a bin that gets the brightest colour; by default the largest in `samples`.

    Shape: `samples` [T]; the picture is as high as there are bins, and at most `MAX_COLUMNS` wide.
    """
    return _png(_power(samples, sample_rate), loudest)


def table_html(cells: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the head first, as `format_table` takes them. All text is escaped; nothing for no rows."""
    if not cells:
        return ""
    head, *body = ["".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
                   for tag, row in zip(["th"] + ["td"] * (len(cells) - 1), cells, strict=True)]
    return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>'
            f'{"".join(f"<tr>{row}</tr>" for row in body)}</tbody></table></div>')


def _prepare(row: Row) -> list[np.ndarray]:
    """The tracks at one common gain, fit to be played."""
    check_sample_rate(row.sample_rate)
    if not row.tracks or any(np.ndim(track.samples) != 1 or not len(track.samples) for track in row.tracks):
        raise AudioError(f"row {row.title!r}: expected at least one track of mono samples [T], got "
                         f"{[np.shape(track.samples) for track in row.tracks]}")
    if len({len(track.samples) for track in row.tracks}) > 1:
        raise AudioError(f"row {row.title!r}: expected tracks of one length, got "
                         f"{[len(track.samples) for track in row.tracks]} samples; cut them to the same")
    tracks = [replace_damage(np.asarray(track.samples, np.float32))[0] for track in row.tracks]
    peak = max(float(np.abs(samples).max()) for samples in tracks)
    return [samples * (PEAK / peak) if peak > 0 else samples for samples in tracks]


def _section(row: Row, tracks: Sequence[np.ndarray], number: int) -> str:
    powers = [_power(samples, row.sample_rate) for samples in tracks]
    loudest = max(float(power.max(initial=0.0)) for power in powers)
    tabs = "".join(f'<button type="button" class="tab" aria-pressed="false">{escape(track.label)}</button>'
                   for track in row.tracks)
    cards = "".join(_card(track, _png(power, loudest), _wav(samples, row.sample_rate))
                    for track, samples, power in zip(row.tracks, tracks, powers, strict=True))
    return (f'<section class="row" aria-labelledby="row{number}"><h2 id="row{number}">{escape(row.title)}</h2>'
            f'<div class="bar" hidden><button type="button" class="play" aria-label="Play or pause">&#9654;</button>'
            f'<div class="tabs" role="group" aria-label="Version">{tabs}</div><output class="clock"></output></div>'
            f'<div class="cards">{cards}</div></section>')


def _card(track: Track, png: bytes, wav: bytes) -> str:
    label = escape(track.label)
    return (f'<figure class="card"><figcaption><b>{label}</b><span>{escape(track.caption)}</span></figcaption>'
            f'<div class="picture"><img alt="Spectrogram, {label}" src="data:image/png;base64,{_base64(png)}">'
            f'<i class="head"></i></div>'
            f'<audio controls preload="auto" src="data:audio/wav;base64,{_base64(wav)}"></audio></figure>')


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _wav(samples: np.ndarray, sample_rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _power(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Power [columns, F] at the model's rate; at least one column, short clips being followed by silence."""
    samples = resample(samples, sample_rate, STFT.sample_rate)
    power = power_spectrogram(np.pad(samples, (0, -len(samples) % STFT.hop_length)))
    group = -(-len(power) // MAX_COLUMNS)
    return np.maximum.reduceat(power, np.arange(0, len(power), group))


def _png(power: np.ndarray, loudest: float | None) -> bytes:
    """Of [columns, F]. Source of the format: PNG, third edition, W3C 2025; a byte of palette index for each pixel."""
    top = max(power.max() if loudest is None else loudest, 1e-20)
    level = 1 + 10 * np.log10(np.maximum(power / top, 1e-20)) / RANGE_DB
    indices = np.round((N_COLOURS - 1) * np.clip(level, 0, 1)).astype(np.uint8).T[::-1]     # 0 Hz below
    places = np.linspace(0, len(_COLOURS) - 1, N_COLOURS)
    palette = np.stack([np.interp(places, np.arange(len(_COLOURS)), channel) for channel in _COLOURS.T], axis=1)
    lines = np.pad(indices, ((0, 0), (1, 0)))                                           # filter 0 before each line
    height, width = indices.shape
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
              (b"PLTE", np.round(palette).astype(np.uint8).tobytes()),
              (b"IDAT", zlib.compress(lines.tobytes(), 9)),
              (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks)


_PRIVACY = """This file holds {clips} of audio ({seconds:.0f} s) in all versions, because you asked for it. It was made
on this computer, loads nothing and sends nothing; whoever gets the file can hear the clips. Delete the file, and they
are gone from it."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header><h1>{title}</h1>{notes}</header>
{table}
<p class="hint" hidden>Play a clip and switch between its versions while it runs: the position stays. Click into a
spectrogram to jump there. Keys while a clip is in use: space, and 1, 2, 3 for the versions.</p>
<p class="hint">Spectrograms: time to the right, 0 to 8 kHz upwards, brighter is louder.</p>
{sections}
<footer><p><b>Privacy.</b> {privacy}</p></footer>
</main>
<script>{script}</script>
</body>
</html>
"""

STYLE = """
:root{--ground:#f6f7f9;--card:#fff;--ink:#181b22;--soft:#5c6472;--line:#dfe3ea;--accent:#0b6e5f;--on-accent:#fff}
@media (prefers-color-scheme:dark){:root{--ground:#101216;--card:#1a1d24;--ink:#e9ecf1;--soft:#9aa3b2;--line:#2c313b;
--accent:#4fd1b5;--on-accent:#06231d}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:72rem;margin:0 auto;padding:2rem 1rem 3rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .6rem;letter-spacing:-.01em}
h2{font-size:1.05rem;margin:0}
header p{margin:.3rem 0;max-width:46rem;color:var(--soft)}
.scroll{overflow-x:auto;margin:1.4rem 0;border:1px solid var(--line);border-radius:12px;background:var(--card)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.55rem .9rem;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}
th{border-top:0;color:var(--soft);font-weight:600;font-size:.85rem}
th:first-child,td:first-child{text-align:left}
tbody tr:last-child td{font-weight:650}
.hint{color:var(--soft);font-size:.9rem;margin:.3rem 0}
.row{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:1rem;margin:1rem 0}
.bar{display:flex;flex-wrap:wrap;gap:.6rem .8rem;align-items:center;margin-top:.7rem}
.bar[hidden]{display:none}
button{font:inherit;color:inherit;cursor:pointer;border:0;background:none}
button:focus-visible,.row:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
.play{width:2.9rem;height:2.9rem;border-radius:50%;background:var(--accent);color:var(--on-accent);font-size:1rem;flex:none}
.tabs{display:flex;flex-wrap:wrap;border:1px solid var(--line);border-radius:999px;padding:3px;background:var(--ground)}
.tab{padding:.4rem .9rem;border-radius:999px;font-size:.92rem}
.tab[aria-pressed=true]{background:var(--ink);color:var(--card)}
.clock{margin-left:auto;color:var(--soft);font-variant-numeric:tabular-nums;font-size:.9rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(15rem,100%),1fr));gap:.9rem;margin-top:.9rem}
.card{margin:0;min-width:0}
figcaption{display:flex;justify-content:space-between;gap:.6rem;font-size:.86rem;margin-bottom:.3rem}
figcaption span{color:var(--soft);text-align:right;font-variant-numeric:tabular-nums}
.picture{position:relative;border-radius:8px;overflow:hidden;background:#060818;line-height:0}
.live .picture{cursor:pointer}
.live .card.on .picture{box-shadow:0 0 0 3px var(--accent)}
.picture img{width:100%;height:9.5rem;object-fit:fill}
.head{display:none;position:absolute;top:0;bottom:0;left:0;width:2px;background:#fff;box-shadow:0 0 4px #000}
.live .head{display:block}
audio{width:100%;height:2.4rem;margin-top:.4rem}
.live audio{display:none}
footer{color:var(--soft);font-size:.88rem;margin-top:2rem;max-width:46rem}
@media (max-width:34rem){main{padding-top:1.2rem}h1{font-size:1.35rem}.row{padding:.8rem}.picture img{height:6rem}
.tabs{order:3;flex:1 0 100%;flex-wrap:nowrap}.tab{flex:auto;padding:.45rem .2rem;font-size:.85rem}
table{font-size:.88rem}th{font-size:.8rem}th,td{padding:.5rem .45rem;white-space:normal}}
"""

# Without the script the browser's own players stay; with it they are hidden and every row gets one shared position.
_SCRIPT = """
"use strict";
const players = [];
for (const row of document.querySelectorAll(".row")) {
  const all = name => [...row.querySelectorAll(name)];
  const audios = all("audio"), cards = all(".card"), tabs = all(".tab"), heads = all(".head");
  const play = row.querySelector(".play"), clock = row.querySelector(".clock");
  const seconds = value => (value || 0).toFixed(1);
  let now = 0;
  const paint = () => {
    const audio = audios[now], share = audio.duration ? audio.currentTime / audio.duration : 0;
    heads.forEach(head => { head.style.left = 100 * share + "%"; });
    cards.forEach((card, i) => card.classList.toggle("on", i === now));
    tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", i === now));
    play.textContent = audio.paused ? "\\u25B6" : "\\u275A\\u275A";
    clock.textContent = seconds(audio.currentTime) + " / " + seconds(audio.duration) + " s";
    if (!audio.paused) requestAnimationFrame(paint);
  };
  const stop = () => audios.forEach(audio => audio.pause());
  const start = () => { players.forEach(player => player.stop()); audios[now].play(); };
  const choose = (i, share) => {
    const from = audios[now], to = audios[i], running = !from.paused;
    const time = share === undefined ? from.currentTime : share * to.duration;
    from.pause();
    to.currentTime = time;
    now = i;
    if (running) to.play();
    paint();
  };
  play.onclick = () => audios[now].paused ? start() : stop();
  tabs.forEach((tab, i) => { tab.onclick = () => choose(i); });
  cards.forEach((card, i) => {
    const picture = card.querySelector(".picture");
    picture.onclick = event => {
      const box = picture.getBoundingClientRect();
      choose(i, (event.clientX - box.left) / box.width);
      if (audios[i].paused) start();
    };
  });
  row.tabIndex = -1;
  row.onkeydown = event => {
    const i = Number(event.key) - 1;
    if (audios[i]) choose(i);
    else if (event.key === " " && event.target.tagName !== "BUTTON") { event.preventDefault(); play.click(); }
  };
  audios.forEach(audio => {
    audio.controls = false;
    ["play", "pause", "ended", "loadedmetadata", "seeked"].forEach(name => audio.addEventListener(name, paint));
  });
  row.classList.add("live");
  row.querySelector(".bar").hidden = false;
  players.push({stop});
  paint();
}
document.querySelector(".hint").hidden = !players.length;
"""
