import numpy as np
import pytest

from pse_sdk import process_together
from pse_sdk import together as together_module
from pse_sdk.errors import AudioError, SettingsError
from pse_sdk.onnx_denoiser import BoundSteps, OnnxDenoiser

TOLERANCE = 1e-6        # a product of many rows may add the same numbers in another order than that of one


def white_noise(*shape, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def assert_alike(ours, theirs):
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("n_streams", [1, 2, 3, 8, 33])
def test_together_streams_give_what_they_give_alone(enhancer, n_streams):
    together, alone = ([enhancer.stream(16_000) for _ in range(n_streams)] for _ in range(2))
    for turn in range(12):
        chunks = white_noise(n_streams, 160, seed=turn)
        assert_alike(process_together(together, chunks),
                     [stream.process(chunk) for stream, chunk in zip(alone, chunks, strict=True)])
    assert_alike([stream.flush() for stream in together], [stream.flush() for stream in alone])


def test_rates_channels_settings_models_and_lengths_may_differ(enhancer, halving):
    def streams():
        return [enhancer.stream(16_000), enhancer.stream(48_000, 2), halving.stream(16_000, 3),
                enhancer.stream(8_000, strength=0.5), halving.stream(44_100, full_band=False)]

    together, alone = streams(), streams()
    rng = np.random.default_rng(0)
    for turn in range(20):
        chunks = [white_noise(rng.choice([0, 1, 160, 441, 480, 9000]), stream.channels, seed=turn) for stream in alone]
        assert_alike(process_together(together, chunks),
                     [stream.process(chunk) for stream, chunk in zip(alone, chunks, strict=True)])


@pytest.mark.parametrize("batch", [1, 3])
def test_bound_steps_are_steps_wherever_their_state_comes_from(enhancer, batch):
    denoiser = enhancer._denoiser
    bound, state = BoundSteps(denoiser, batch), denoiser.initial_state(batch)
    expected_state = state
    for turn in range(9):
        hop = white_noise(batch, denoiser.info.hop_length, seed=turn)
        if turn % 4 == 2:       # a state from elsewhere
            state = {name: value.copy() for name, value in expected_state.items()}
        before = {name: value.copy() for name, value in state.items()}
        out, after = bound.step(hop, state)
        expected, expected_state = denoiser.step(hop, expected_state)
        np.testing.assert_allclose(out, expected, rtol=0, atol=TOLERANCE)
        for name, value in after.items():
            np.testing.assert_allclose(value, expected_state[name], rtol=0, atol=TOLERANCE)
            np.testing.assert_array_equal(state[name], before[name])
        state = after


def test_what_bound_steps_return_stays_as_it_is(enhancer):
    bound, state = BoundSteps(enhancer._denoiser, 1), enhancer._denoiser.initial_state()
    first, state = bound.step(white_noise(1, 256), state)
    kept = first.copy()
    bound.step(white_noise(1, 256, seed=1), state)
    np.testing.assert_array_equal(first, kept)


def test_a_stream_comes_goes_and_begins_anew_without_the_others_noticing(enhancer):
    lasting, lasting_alone = enhancer.stream(16_000), enhancer.stream(16_000)
    guest, guest_alone = None, None
    for turn in range(30):
        if turn % 7 == 3:
            guest, guest_alone = enhancer.stream(16_000), enhancer.stream(16_000)
        if turn % 7 == 5:
            guest.reset()
            guest_alone.reset()
        if guest is not None and turn % 7 == 0:
            guest.close()
            guest = None
        chunks = white_noise(2, 300, seed=turn)
        present = [lasting] if guest is None else [lasting, guest]
        outs = process_together(present, chunks[:len(present)])
        expected = [lasting_alone.process(chunks[0])] + ([] if guest is None else [guest_alone.process(chunks[1])])
        assert_alike(outs, expected)


def test_of_all_that_a_model_waits_for_one_step_is_made(enhancer, monkeypatch):
    batches, step = [], OnnxDenoiser.step

    def counted(self, samples, state):
        batches.append(len(samples))
        return step(self, samples, state)

    monkeypatch.setattr(OnnxDenoiser, "step", counted)
    streams = [enhancer.stream(16_000), enhancer.stream(16_000, 2), enhancer.stream(16_000)]
    process_together(streams, [white_noise(256), white_noise(512, 2), white_noise(100)])
    assert batches == [3, 2]
    monkeypatch.setattr(together_module, "MOST_AT_ONCE", 2)
    batches.clear()
    process_together([enhancer.stream(16_000) for _ in range(5)], white_noise(5, 256))
    assert batches == [2, 2, 1]


def test_nobody_pays_for_the_damaged_samples_of_another(enhancer):
    streams, chunks = [enhancer.stream(16_000) for _ in range(3)], white_noise(3, 5000)
    chunks[1, 700:710] = np.nan
    outs = process_together(streams, chunks)
    assert [stream.n_replaced for stream in streams] == [0, 10, 0]
    assert_alike(outs, [enhancer.stream(16_000).process(chunk) for chunk in chunks])


@pytest.mark.parametrize("bad, error", [(np.zeros((100, 3), np.float32), AudioError), (None, AudioError)],
                         ids=["channels", "none"])
def test_if_one_chunk_is_refused_no_stream_has_heard_anything(enhancer, bad, error):
    streams = [enhancer.stream(16_000), enhancer.stream(16_000)]
    with pytest.raises(error):
        process_together(streams, [white_noise(1000), bad])
    for stream in streams:
        np.testing.assert_array_equal(stream.process(white_noise(2000)),
                                      enhancer.stream(16_000).process(white_noise(2000)))


def test_a_closed_stream_is_refused_before_the_others_hear_anything(enhancer):
    one, closed = enhancer.stream(16_000), enhancer.stream(16_000)
    closed.close()
    with pytest.raises(SettingsError, match="closed"):
        process_together([one, closed], white_noise(2, 1000))
    np.testing.assert_array_equal(one.process(white_noise(2000)), enhancer.stream(16_000).process(white_noise(2000)))


def test_an_interrupted_call_leaves_streams_that_are_reset(enhancer, monkeypatch):
    streams, chunks = [enhancer.stream(16_000) for _ in range(2)], white_noise(2, 1000)
    process_together(streams, chunks)
    with monkeypatch.context() as patch:
        patch.setattr(OnnxDenoiser, "step", lambda *hops: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            process_together(streams, chunks)
    for stream, chunk in zip(streams, chunks, strict=True):
        np.testing.assert_array_equal(stream.process(chunk), enhancer.stream(16_000).process(chunk))


def test_every_stream_has_one_chunk(enhancer):
    streams = [enhancer.stream(16_000), enhancer.stream(16_000)]
    with pytest.raises(SettingsError, match="2 streams and 3 chunks"):
        process_together(streams, white_noise(3, 100))
    with pytest.raises(SettingsError, match="twice"):
        process_together([streams[0]] * 2, white_noise(2, 100))


def test_no_streams_give_nothing():
    assert process_together([], []) == []


def test_a_call_that_takes_longer_than_its_chunks_makes_them_late(enhancer, monkeypatch):
    streams, step = [enhancer.stream(16_000) for _ in range(3)], OnnxDenoiser.step

    def slow(self, samples, state):
        import time
        time.sleep(0.05)
        return step(self, samples, state)

    monkeypatch.setattr(OnnxDenoiser, "step", slow)
    process_together(streams, [white_noise(256), white_noise(0), white_noise(256 * 1000)[:256 * 8]])
    assert [stream.n_late for stream in streams] == [1, 0, 1]


def test_a_stream_keeps_no_memory_of_its_company(enhancer):
    streams = [enhancer.stream(16_000) for _ in range(8)]
    process_together(streams, white_noise(8, 512))
    assert all(value.base is None for stream in streams for value in stream._state.values())
