"""What to do better next time, from what was found in the recordings: fields of the report."""

from typing import Any

LEAST_HARVEST_SECONDS = 3.0     # of pauses, to train with


def advice_on(facts: dict[str, Any]) -> tuple[str, ...]:
    advice = []
    if facts["seconds_of_speech"] < 120:
        advice.append("a few minutes more of speech would help most")
    advice += [*on_band(facts), *on_music(facts)]
    if facts["seconds_of_noise"] < LEAST_HARVEST_SECONDS:       # training did without them
        advice.append("leave pauses of a second or two in a recording: the noise is learnt from them")
    if _is_noted(facts, "several talkers"):
        advice.append("record one person alone, away from other voices: they are learnt as the user's")
    if about_level := on_level(facts):
        advice += about_level
    elif facts["snr_db"] is not None and facts["snr_db"] < 5:
        advice.append("the recordings are very noisy; a few from closer to the microphone would help")
    return tuple(advice)


def _is_noted(facts: dict[str, Any], words: str) -> bool:
    return any(words in note for note in facts["notes"])


def on_music(facts: dict[str, Any]) -> list[str]:
    return ["record without music: it is taken for speech"] if _is_noted(facts, "music") else []


def on_band(facts: dict[str, Any]) -> list[str]:
    return (["record with the whole band: what a telephone leaves out cannot be learnt"]
            if _is_noted(facts, "from a telephone") else [])


def on_level(facts: dict[str, Any]) -> list[str]:
    is_clipped = any("clipped" in note and note.startswith(("recording ", "clean recording "))
                     for note in facts["notes"] if not note.startswith("recording of voices"))
    return ["record anew with the input level turned down: clipped speech is learnt as it is"] if is_clipped else []
