import pytest

torch = pytest.importorskip("torch")
from pse_sdk.training.threads import LAST_TRIAL, N_REMEMBERED, QuickestThreads  # noqa: E402


@pytest.fixture(autouse=True)
def threads_as_before():
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


def run(threads, n_steps, seconds_of):
    """The numbers of threads of so many steps, each of which takes what `seconds_of` says."""
    numbers = []
    for _ in range(n_steps):
        numbers.append(torch.get_num_threads())
        threads.took(seconds_of(numbers[-1]))
    return numbers


@pytest.mark.parametrize("first, most, seconds_of, chosen", [
    (1, 2, lambda n: {1: 0.08, 2: 0.06}[n], 2), (2, 2, lambda n: {1: 0.075, 2: 0.28}[n], 1),
    (2, 2, lambda n: 0.08 - 0.001 * (2 - n), 2), (1, 4, lambda n: 1 / n, 4), (4, 4, lambda n: n, 1),
    (1, 1, lambda n: 1.0, 1), (3, 4, lambda n: n, 1), (1, 3, lambda n: 1 / n, 2)])
def test_the_quickest_number_is_found_and_kept(first, most, seconds_of, chosen):
    torch.set_num_threads(first)
    numbers = run(QuickestThreads(most), 400, seconds_of)
    assert max(numbers) <= max(first, most)
    assert numbers[200:].count(chosen) >= 190


def test_a_machine_that_gets_busy_is_noticed_within_a_few_steps():
    torch.set_num_threads(2)
    threads = QuickestThreads(2)
    run(threads, 1000, lambda n: {1: 0.08, 2: 0.06}[n])
    assert torch.get_num_threads() == 2
    busy = run(threads, 40, lambda n: {1: 0.08, 2: 0.28}[n])
    assert busy.count(2) <= N_REMEMBERED and busy[-1] == 1
    idle_again = run(threads, 2 * LAST_TRIAL, lambda n: {1: 0.08, 2: 0.06}[n])
    assert idle_again[-1] == 2


def test_trials_become_rare_where_nothing_changes():
    torch.set_num_threads(1)
    numbers = run(QuickestThreads(2), 2000, lambda n: {1: 0.08, 2: 0.28}[n])
    assert 0 < numbers.count(2) <= 12       # one step is enough to see that it is hopeless


def test_a_step_that_hangs_once_changes_nothing():
    torch.set_num_threads(2)
    threads = QuickestThreads(2)
    run(threads, 100, lambda n: {1: 0.08, 2: 0.06}[n])
    threads.took(5.0)
    assert set(run(threads, 7, lambda n: {1: 0.08, 2: 0.06}[n])) == {2}


def test_what_is_on_trial_when_training_ends_is_not_kept():
    torch.set_num_threads(2)
    threads = QuickestThreads(2)
    run(threads, N_REMEMBERED, lambda n: {1: 0.08, 2: 0.06}[n])
    assert torch.get_num_threads() == 1
    threads.settle()
    assert torch.get_num_threads() == 2
