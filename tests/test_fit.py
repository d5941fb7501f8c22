import io
import time

import pytest
import torch

from pse_sdk.checkpoint_file import CHECKPOINT_HEADER
from pse_sdk.config import STFT
from pse_sdk.training import fit as fit_module
from pse_sdk.training.fit import Checkpoint, FitConfig, contrast_loss, fit, items_loss
from pse_sdk.training.network import build_network
from pse_sdk.training.pseudo_mixtures import Contrasts, Items, Method
from pse_sdk.training.specialist import interpolate
from pse_sdk.training.threads import QuickestThreads


class Tones:
    """Tones in white noise, as a source of items."""

    method = Method()

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, n: int) -> Items:
        time_axis = torch.arange(40 * 256) / 16_000
        pitch = 200 + 2000 * torch.rand(n, 1, generator=self.generator)
        target = torch.sin(2 * torch.pi * pitch * time_axis)
        mixture = target + torch.randn(n, 40 * 256, generator=self.generator)
        return Items(mixture, target, torch.ones(n, 40))

    def state(self):
        return self.generator.get_state()

    def set_state(self, state):
        self.generator.set_state(state)


@pytest.fixture(scope="module")
def start():
    torch.manual_seed(0)
    return build_network("tiny").eval()


@pytest.fixture(scope="module")
def held_out_loss():
    items = Tones(seed=1).draw(16)

    @torch.no_grad()
    def score(network) -> float:
        return -float(items_loss(network, items))
    return score


def test_training_lowers_the_loss_on_tones_that_it_has_not_heard(start, held_out_loss):
    fitted = fit(start, Tones(), held_out_loss, seconds=60, steps=40, config=FitConfig(batch=8))
    assert fitted.score > held_out_loss(start) + 0.1
    assert held_out_loss(fitted.network) == pytest.approx(fitted.score)


def test_the_start_network_is_left_as_it_was(start, held_out_loss):
    before = {name: value.clone() for name, value in start.state_dict().items()}
    fit(start, Tones(), held_out_loss, seconds=60, steps=5, config=FitConfig(batch=2))
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())


def test_the_same_number_of_steps_gives_the_same_weights(start, held_out_loss):
    first, second = (fit(start, Tones(), held_out_loss, seconds=60, steps=6, config=FitConfig(batch=2))
                     for _ in range(2))
    assert all(torch.equal(a, b) for a, b in
               zip(first.network.parameters(), second.network.parameters(), strict=True))


def test_the_start_wins_where_every_step_makes_it_worse(start):
    calls = iter(range(1000))
    fitted = fit(start, Tones(), lambda network: -float(next(calls)), seconds=60, steps=6, config=FitConfig(batch=2))
    assert fitted.score == 0.0
    assert all(torch.equal(a, b) for a, b in zip(fitted.network.parameters(), start.parameters(), strict=True))


def test_a_budget_without_a_number_of_steps_is_kept(start, held_out_loss):
    began = time.monotonic()
    fitted = fit(start, Tones(), held_out_loss, seconds=3.0, config=FitConfig(batch=2))
    # a machine that stalls for a whole step and a validation may be late by those, not by more
    assert time.monotonic() - began < 6.0
    assert fitted.n_steps >= 1


def test_the_time_that_is_planned_for_is_used():
    """On a clock by which a step takes a second and a validation half of one."""
    clock = [0.0]

    class TimedTones(Tones):
        def draw(self, n):
            clock[0] += 1.0
            return super().draw(n)

    def score(network):
        clock[0] += 0.5
        return clock[0]

    torch.manual_seed(0)
    config = FitConfig(batch=1, most_validations=10, steps_to_validate=1)
    fitted = fit(build_network("tiny"), TimedTones(), score, seconds=200, config=config, now=lambda: clock[0])
    assert 190 <= clock[0] <= 201
    assert fitted.seconds == clock[0]
    again = fit(build_network("tiny"), Tones(), score, seconds=1e9, steps=fitted.n_steps, config=config)
    assert [step for step, _ in again.curve] == [step for step, _ in fitted.curve]


@pytest.mark.parametrize("chooses", [False, True])
def test_slow_first_steps_do_not_shorten_the_plan(chooses):
    """A step takes four seconds until another program ends, or until fewer threads are tried, and one second then."""
    clock, threads = [0.0], torch.get_num_threads()

    class TimedTones(Tones):
        def draw(self, n):
            slow = torch.get_num_threads() > 1 if chooses else clock[0] < 40
            clock[0] += 4.0 if slow else 1.0
            return super().draw(n)

    def score(network):
        clock[0] += 0.5
        return clock[0]

    try:
        torch.set_num_threads(2)
        config = FitConfig(batch=1, most_validations=10, steps_to_validate=1000)
        fitted = fit(build_network("tiny"), TimedTones(), score, seconds=240, config=config, now=lambda: clock[0],
                     threads=QuickestThreads(2) if chooses else None)
    finally:
        torch.set_num_threads(threads)
    assert 210 <= clock[0] <= 245
    assert fitted.n_steps > 150
    again = fit(build_network("tiny"), Tones(), score, seconds=1e9, steps=fitted.n_steps, config=config)
    assert [step for step, _ in again.curve] == [step for step, _ in fitted.curve]


class Killed(Exception):
    pass


@pytest.mark.parametrize("steps", [40, None])
@pytest.mark.parametrize("last_step", [3, 25])
def test_what_was_killed_goes_on_from_its_checkpoint_as_if_it_had_not_been(start, held_out_loss, tmp_path, steps,
                                                                          last_step, monkeypatch):
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0.5)
    checkpoint = Checkpoint(tmp_path / "me.checkpoint", "key")
    clock = [0.0]

    def on_step(done, left):
        clock[0] += 1.0
        if clock[0] == last_step:
            raise Killed

    def run(on_step, checkpoint):
        clock[0] = 0.0
        config = FitConfig(batch=2, fewest_steps=1, most_validations=4, steps_to_validate=1)
        return fit(start, Tones(), held_out_loss, seconds=40, steps=steps, now=lambda: clock[0], on_step=on_step,
                   config=config, checkpoint=checkpoint)

    def tick(done, left):
        clock[0] += 1.0

    whole = run(tick, None)
    with pytest.raises(Killed):
        run(on_step, checkpoint)
    other = run(tick, Checkpoint(checkpoint.path, "another"))
    with pytest.raises(Killed):
        run(on_step, checkpoint)
    resumed = run(tick, checkpoint)
    assert resumed.n_steps == whole.n_steps == other.n_steps
    assert (whole.began_anew, other.began_anew, resumed.began_anew) == (False, True, False)
    assert resumed.curve == whole.curve
    assert all(torch.equal(a, b) for a, b in
               zip(resumed.network.parameters(), whole.network.parameters(), strict=True))


def of_an_earlier_version():
    saved = io.BytesIO()
    torch.save({"key": "key", "optimizer": {}}, saved)
    return CHECKPOINT_HEADER + saved.getvalue()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", of_an_earlier_version(), None])
def test_a_damaged_or_impossible_checkpoint_costs_nothing_but_itself(start, held_out_loss, tmp_path, content):
    path = tmp_path / "me.checkpoint" if content is not None else tmp_path / "nowhere" / "me.checkpoint"
    if content is not None:
        path.write_bytes(content)
    fitted = fit(start, Tones(), held_out_loss, seconds=60, steps=4, config=FitConfig(batch=2),
                 checkpoint=Checkpoint(path, "key"))
    assert fitted.n_steps == 4 and fitted.began_anew == (content is not None)


def test_interpolation_ends_at_its_ends(start):
    torch.manual_seed(1)
    end = build_network("tiny")
    for mix, same in ((0.0, start), (1.0, end)):
        network = interpolate(start, end, mix)
        for a, b in zip(network.parameters(), same.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_outputs_that_are_too_alike_are_pushed_apart_by_the_corrected_term_alone():
    """Two recordings, one noise, and a network that keeps the noise: the outputs are more alike than the targets."""
    generator = torch.Generator().manual_seed(0)
    targets = [0.3 * torch.randn(4, 80 * STFT.hop_length, generator=generator) for _ in range(2)]
    noise = torch.randn(4, 80 * STFT.hop_length, generator=generator)
    weight = torch.ones(4, 80)
    first, second = (Items(target + noise, target, weight) for target in targets)
    contrasts = Contrasts(first, second, torch.zeros(4, dtype=torch.bool))
    gradients = {}
    for kind in ("corrected", "published"):
        torch.manual_seed(0)
        network = build_network("tiny")
        contrast_loss(network, contrasts, kind).backward()
        gradients[kind] = sum(p.grad.abs().sum().item() for p in network.parameters() if p.grad is not None)
    assert gradients["corrected"] > 1e-5 and gradients["published"] == 0.0


def test_outputs_for_one_recording_in_two_noises_are_drawn_together():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4, 80 * STFT.hop_length, generator=generator)
    weight = torch.ones(4, 80)
    first, second = (Items(target + torch.randn(target.shape, generator=generator), target, weight) for _ in range(2))
    contrasts = Contrasts(first, second, torch.ones(4, dtype=torch.bool))
    torch.manual_seed(0)
    network = build_network("tiny")
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = contrast_loss(network, contrasts, "corrected")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
