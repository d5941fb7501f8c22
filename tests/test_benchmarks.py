import importlib
import json
import os
import re
import sys
from dataclasses import replace
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pse_sdk import benchmark
from pse_sdk.benchmark import EMPTY, LatencyPlan, Times, measure_latency
from pse_sdk.benchmark_page import Point, comparison_page, scatter_svg
from pse_sdk.benchmark_report import Comparison, comparison_table, method_notes, read_quality
from pse_sdk.empty_model import empty_model
from pse_sdk.enhancer import Enhancer
from pse_sdk.errors import ModelFileError, PersonalizationError, PseError, SettingsError
from pse_sdk.macs import count_macs
from pse_sdk.metrics import Scores
from pse_sdk.onnx_denoiser import OnnxDenoiser
from pse_sdk.peers import make_peer
from pse_sdk.report import KEPT, Report
from pse_sdk.tables import environment, environment_line

SHORT = LatencyPlan(n_steps=20, seconds=0.1, n_fresh=1)
PROGRAMS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "me.onnx"
    path.write_bytes(empty_model())
    return path


def program(monkeypatch, name):
    monkeypatch.syspath_prepend(str(PROGRAMS))
    return importlib.import_module(name)


# The empty model and the arithmetic of others.


@pytest.mark.parametrize("hop_length", [1, 160, 256])
def test_the_empty_model_hands_its_input_on(hop_length):
    denoiser = OnnxDenoiser(empty_model(hop_length))
    samples = np.random.default_rng(0).standard_normal((1, hop_length)).astype(np.float32)
    enhanced, state = denoiser.step(samples, denoiser.initial_state())
    np.testing.assert_array_equal(enhanced, samples)
    assert (denoiser.info.hop_length, denoiser.info.delay, state) == (hop_length, 0, {})


def test_the_empty_model_is_valid_onnx():
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(onnx.load_from_string(empty_model()), full_check=True)


def test_the_empty_model_needs_no_arithmetic():
    assert count_macs(empty_model()) == 0


def test_macs_are_those_of_the_textbook():
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    weights = {"matrix": (6, 5), "stored_transposed": (7, 5), "input_weights": (1, 12, 7), "recurrent": (1, 12, 4),
               "kernel": (3, 1, 2)}
    nodes = [
        make.make_node("MatMul", ["x", "matrix"], ["a"]),                                       # 1 x 6 x 5
        make.make_node("Gemm", ["a", "stored_transposed"], ["b"], transB=1),                    # 1 x 5 x 7
        make.make_node("Unsqueeze", ["b", "axis"], ["c"]),
        make.make_node("GRU", ["c", "input_weights", "recurrent"], ["", "d"], hidden_size=4),   # 3 x 4 x (7 + 4)
        make.make_node("Conv", ["d", "kernel"], ["y"]),                                         # 3 x 3 outputs x 2
    ]
    rng = np.random.default_rng(0)
    constants = [onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
                 for name, shape in weights.items()]
    constants.append(onnx.numpy_helper.from_array(np.array([0]), "axis"))
    graph = make.make_graph(nodes, "sum", [make.make_tensor_value_info("x", 1, [1, 6])],
                            [make.make_tensor_value_info("y", 1, None)], constants)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    assert count_macs(model.SerializeToString()) == 30 + 35 + 132 + 18


# Latency.


def test_every_model_gets_a_row_beside_the_empty_graph(model_file):
    rows = measure_latency({"file": model_file, "object": Enhancer(model_file)}, SHORT)
    assert [row.name for row in rows] == [EMPTY, "file", "object"]
    for row in rows:
        assert row.file_bytes == len(empty_model())
        assert (row.n_parameters, row.macs_per_second, row.delay_samples, row.latency_ms) == (0, 0, 0, 16)
        for times in (row.step_us, row.process_us, row.paced_us):
            assert 0 < times.p50 <= times.p99 <= times.p999
        assert row.step_us.n == row.process_us.n == SHORT.n_steps
        assert min(row.load_ms, row.start_ms, row.first_step_ms, row.cpu_percent, row.cpu_us_per_second,
                   row.real_time_factor) > 0
        assert row.start_ms > row.load_ms


def test_steps_are_rounded_up_to_whole_turns(model_file):
    rows = measure_latency({}, replace(SHORT, n_steps=benchmark.TURN + 1))
    assert rows[0].step_us.n == 2 * benchmark.TURN


def test_at_real_time_there_are_as_many_calls_as_hops(model_file):
    paced = benchmark._Bench(benchmark._Model(model_file), seed=0).pace(seconds=0.16)
    assert len(paced.nanoseconds) == 10
    assert paced.wall_seconds >= 0.16


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin")
def test_the_caller_may_use_its_cores_again():
    cores = os.sched_getaffinity(0)
    measure_latency({}, SHORT)
    assert os.sched_getaffinity(0) == cores


def test_a_missing_model_file_is_named(tmp_path):
    with pytest.raises(ModelFileError, match="nothing.onnx"):
        measure_latency({"nothing": tmp_path / "nothing.onnx"}, SHORT)


def test_a_fresh_process_that_fails_says_why(monkeypatch, model_file):
    monkeypatch.setattr(benchmark, "_FRESH_PROCESS", "raise SystemExit('out of luck')")
    with pytest.raises(PseError, match="out of luck"):
        measure_latency({}, SHORT)


def test_percentiles_are_of_microseconds():
    times = Times.of(np.arange(1001) * 1000)
    assert (times.p50, times.p99, times.p999, times.mean, times.n) == pytest.approx((500, 990, 999, 500, 1001))


def test_the_table_has_a_line_for_each_model_and_a_dash_for_what_is_unknown():
    row = replace(measure_latency({}, SHORT)[0], resident_mib=None)
    head, line = comparison_table([row])
    assert line[:3] == [EMPTY, "0", "0.0"]
    assert dict(zip(head, line, strict=True))["memory MiB"] == "-"


def test_the_notes_say_how_long_was_measured():
    notes = method_notes(LatencyPlan(n_steps=12_345, seconds=7.5, n_fresh=3))
    assert "12,345 times" in notes and "7.5 s of" in notes and "3 fresh processes" in notes


def test_the_environment_is_one_line_without_missing_parts():
    line = environment_line({**environment(), "load_average": None, "seed": 3})
    assert "seed 3" in line and "None" not in line and "\n" not in line


def test_the_latency_program_writes_a_page_and_its_figures(monkeypatch, tmp_path, model_file, capsys):
    latency = program(monkeypatch, "latency")
    monkeypatch.setattr(latency, "QUICK", SHORT)
    monkeypatch.setattr(latency, "installed_generalists", dict)
    out = tmp_path / "new" / "latency"
    monkeypatch.setattr("sys.argv", ["latency.py", "--quick", "--model", str(model_file), "--out", str(out),
                                     "--seed", "5"])
    latency.main()
    page = out.with_suffix(".md").read_text()
    assert "| specialist me |" in page and "specialist me" in out.with_suffix(".html").read_text()
    assert page in capsys.readouterr().out
    values = json.loads(out.with_suffix(".json").read_text())
    assert [row["name"] for row in values["rows"]] == [EMPTY, "specialist me"]
    assert values["plan"]["seed"] == values["environment"]["seed"] == 5


# Peers.

PEER = """
import numpy as np

class Half:
    sample_rate, hop, delay, params = 48_000, 480, 480, 7

    def step(self, frame):
        assert frame.shape == (480,) and frame.dtype == np.float32
        return frame / 2

class Whole(Half):
    hop = 0

class Broken(Half):
    def step(self, frame):
        raise ValueError("out of order")

class Graph(Half):
    sample_rate, hop = 16_000, 256

    def __init__(self):
        import onnxruntime
        self.session = onnxruntime.InferenceSession({model!r}, providers=["CPUExecutionProvider"])
        self.inputs = {{i.name: np.zeros(i.shape, np.float32) for i in self.session.get_inputs()}}
        self.step(np.zeros(256, np.float32))        # a warm-up, which is no part of the cost

    def step(self, frame):
        return self.session.run(None, {{**self.inputs, "samples": frame[None]}})[0][0]

def make(name):
    return globals()[name]()
"""


@pytest.fixture
def peer_file(tmp_path, tiny_model):
    path = tmp_path / "our.peers.py"
    path.write_text(PEER.format(model=str(tiny_model)))
    return path


def test_a_peer_gets_a_row_with_its_own_hop_and_dashes_for_what_nobody_knows(peer_file):
    row = measure_latency({}, SHORT, peers=[(peer_file, "Half")])[-1]
    assert (row.name, row.n_parameters, row.hop_ms, row.delay_ms, row.latency_ms) == ("peer Half", 7, 10, 10, 20)
    assert row.macs_per_second is row.file_bytes is None
    assert row.step_us.n == row.process_us.n == SHORT.n_steps and row.paced_us.n == 8   # two of each turn's 25 ms
    assert min(row.load_ms, row.start_ms, row.first_step_ms, row.cpu_percent, row.cpu_us_per_second) > 0
    cells = dict(zip(*comparison_table([row]), strict=True))
    assert cells["MMAC/s"] == cells["file KiB"] == "-"


def test_what_a_peer_runs_in_onnx_runtime_is_counted(peer_file, tiny_model):
    macs_per_second, file_bytes = benchmark._Peer(peer_file, "Graph").count()
    assert macs_per_second == pytest.approx(count_macs(tiny_model.read_bytes()) * 16_000 / 256)
    assert file_bytes == tiny_model.stat().st_size


@pytest.mark.parametrize("name, why", [("Whole", "whole recordings only"), ("Broken", "out of order"),
                                       ("Nobody", "Nobody")])
def test_a_peer_that_cannot_be_measured_is_named(peer_file, name, why):
    with pytest.raises(PseError, match=why):
        measure_latency({}, SHORT, peers=[(peer_file, name)])


def test_a_file_that_is_no_python_is_named(tmp_path):
    with pytest.raises(PseError, match="nothing.py"):
        make_peer(tmp_path / "nothing.py", "Half")


# Quality joined, and the page.


@pytest.fixture
def scores(tmp_path):
    """What benchmarks/personalization.py writes, of the empty graph and of another model called `other`."""
    means = {"si_sdr_improvement": {"value": 1.5, "half_width": 0.25, "n": 2},
             "pesq": {"value": 2.0, "half_width": None, "n": 1}, "estoi": {"value": None, "half_width": None, "n": 0}}
    path = tmp_path / "personalization.json"
    path.write_text(json.dumps({
        "environment": {"date": "2026-01-31"}, "summary": {"noise": {EMPTY: means, "other": means}},
        "results": [{"user": "ann", "system": EMPTY, "n_parameters": 0},
                    {"user": "ann", "system": "other", "n_parameters": 5, "digest": "another"}]}))
    return path


def test_scores_are_joined_by_name(scores):
    row = measure_latency({}, SHORT)[0]
    cells = dict(zip(*comparison_table([row], read_quality(scores)), strict=True))
    assert (cells["SI-SDRi dB"], cells["PESQ"], cells["ESTOI"]) == ("1.50 ± 0.25", "2.000", "-")


def test_scores_of_another_model_of_that_name_are_left_out(scores):
    row = measure_latency({}, SHORT)[0]
    quality = read_quality(scores)
    assert not quality.of(replace(row, name="other", n_parameters=6, digest="another"))
    assert not quality.of(replace(row, name="other", n_parameters=5, digest="this"))
    assert quality.of(replace(row, name="other", n_parameters=5, digest="another"))


def test_scores_that_cannot_be_read_are_refused_with_the_choice(scores, tmp_path):
    with pytest.raises(SettingsError, match="choose one of noise"):
        read_quality(scores, "talker")
    (tmp_path / "list.json").write_text("[]")
    for name in ("list.json", "missing.json"):
        with pytest.raises(SettingsError, match=name):
            read_quality(tmp_path / name)


def test_the_comparison_page_is_whole_in_itself_and_escapes(scores):
    row = measure_latency({}, SHORT)[0]
    rows = [row, replace(row, name="<b>", macs_per_second=2e6), replace(row, name="other", digest="another",
                                                                        n_parameters=5, macs_per_second=3e6)]
    for quality, n_plots in ((None, 2), (read_quality(scores), 4)):       # of two metrics or of memory, by two costs
        page = comparison_page("A <title>", Comparison(environment(), SHORT, rows, quality))
        assert page.count("<svg ") == page.count("</svg>") == n_plots
        assert "A &lt;title&gt;" in page and "<b>" not in page
        assert "default-src 'none'" in page
        assert not any(word in page for word in ("http:", "https:", "src=", "href=", "url("))


def test_a_better_and_costlier_point_lies_higher_and_further_right():
    plot = scatter_svg([Point("low", 10, 1.0), Point("high", 1000, 2.0)], "cost", "quality")
    (x_high, y_high), (x_low, y_low) = [(float(x), float(y)) for x, y in
                                        re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', plot)]
    assert x_high > x_low and y_high < y_low        # SVG counts downwards


def test_one_point_makes_a_plot_and_none_makes_nothing():
    assert "only" in scatter_svg([Point("only", 1.0, 0.0)], "cost", "quality")
    assert scatter_svg([], "cost", "quality") == ""


# The guard: from decisions to tables.


def test_the_guard_is_counted_by_kind_and_by_worth(monkeypatch):
    pytest.importorskip("torch")
    guard = program(monkeypatch, "guard")

    def decision(kind, true_gain_db, failed=()):
        return guard.Decision("ann", kind, "", 1.0, not failed, failed, 0.0, true_gain_db, true_gain_db)

    decisions = [decision("weights with noise", -1.0, ("mean_gain_db", "sure_gain_db")),
                 decision("another user's", -0.2), decision("another user's", 0.3, ("clean_db",)),
                 decision("own", 1.0), decision("own", 0.6, ("clean_db",)), decision("own", 0.2)]
    rows = {row[0]: row[1:] for row in guard.summary(decisions)}
    assert rows["null: another user's specialist"] == ["2", "1", "50%", "1", "-0.20"]
    assert rows["null, all that are no better than the start"] == ["2", "1", "50%", "1", "-0.20"]
    assert rows["own, 0.5 dB and more"] == ["2", "1", "50%", "0", "+1.00"]
    assert rows["own, no gain"] == ["0", "0", "-", "0", "-"]
    assert {row[0]: row[1:] for row in guard.by_check(decisions)}["clean_db"] == ["2", "2", "1", "1"]


# Personalization: from scores to a page.


@pytest.fixture
def tables(monkeypatch):
    pytest.importorskip("scipy")
    return program(monkeypatch, "score_tables")


def clip(si_sdr_improvement, pesq=2.0, estoi=0.5, si_sdr=10.0):
    return {"si_sdr_improvement": si_sdr_improvement, "pesq": pesq, "estoi": estoi, "si_sdr": si_sdr}


@pytest.fixture
def results(tables):
    """Three users: one gains, one loses, one keeps the start model."""
    def result(user, system, noise, **more):
        return tables.Result(user, system, {"noise": noise, "clean": [clip(0.0, si_sdr=30.0)]}, **more)

    specialist = {"start": "generalist tiny", "n_parameters": 34_680}
    return [
        result("ann", "generalist tiny", [clip(4.0), clip(6.0)], n_parameters=34_680),
        result("bob", "generalist tiny", [clip(3.0)], n_parameters=34_680),
        result("cat", "generalist tiny", [clip(1.0)], n_parameters=34_680),
        result("ann", "mine", [clip(5.0), clip(8.0)], status="accepted", seconds=100, n_steps=50, **specialist),
        result("bob", "mine", [clip(2.5, pesq=2.5)], status="accepted", seconds=110, n_steps=70, **specialist),
        result("cat", "mine", [clip(1.0)], status="kept", seconds=60, n_steps=30, **specialist),
    ]


def test_the_interval_is_students(tables):
    mean = tables.Mean.over([1.0, 2.0, 3.0])
    assert (mean.value, mean.n) == (2.0, 3)
    assert mean.half_width == pytest.approx(4.3027 / np.sqrt(3), abs=1e-4)     # t(0.975, 2), standard deviation 1


def test_one_user_has_a_mean_but_no_interval(tables):
    mean = tables.Mean.over([2.0])
    assert mean.value == 2.0 and isnan(mean.half_width)
    assert isnan(tables.Mean.over([]).value)


def test_scores_that_do_not_exist_are_left_out(tables):
    assert tables.mean_over_clips([clip(1.0), clip(nan), clip(3.0)], "si_sdr_improvement") == 2.0
    assert isnan(tables.mean_over_clips([clip(nan)], "si_sdr_improvement"))
    assert tables.Mean.over([nan, 1.0, 3.0]).n == 2


def test_a_user_with_many_clips_counts_as_one_user(tables, results):
    mean = tables.summary(results)["noise"]["generalist tiny"]["si_sdr_improvement"]
    assert mean.value == pytest.approx((5.0 + 3.0 + 1.0) / 3)


def test_gains_are_within_users_and_name_the_worst(tables, results):
    gain = tables.gains(results)["noise"]["mine"]["si_sdr_improvement"]
    assert gain.mean.value == pytest.approx((1.5 - 0.5 + 0.0) / 3)
    assert (gain.n_worse, gain.worst_user, gain.worst) == (1, "bob", -0.5)


def test_nobody_is_worse_where_the_start_model_stays(tables, results):
    assert tables.gains(results)["noise"]["mine"]["pesq"].n_worse == 0


def test_the_worst_user_is_named_even_if_better(tables):
    gain = tables.Gain.between({"ann": 3.0, "bob": 2.0}, {"ann": 1.0, "bob": 1.0, "cat": 9.0})
    assert (gain.n_worse, gain.worst_user, gain.worst, gain.mean.n) == (0, "bob", 1.0, 2)


def test_users_without_a_score_are_not_compared(tables):
    gain = tables.Gain.between({"ann": nan, "bob": 2.0}, {"ann": 1.0, "bob": 1.0})
    assert (gain.mean.n, gain.worst_user) == (1, "bob")
    assert tables.Gain.between({}, {}).mean.n == 0


def test_the_clean_set_reports_closeness_instead_of_improvement(tables, results):
    assert tables.summary(results)["clean"]["mine"]["si_sdr"].value == 30.0
    assert "si_sdr_improvement" not in tables.summary(results)["clean"]["mine"]


def test_the_pages_say_who_got_worse_and_how_specialists_were_judged(tables, results):
    page = tables.summary_page(results)
    assert "| mine | noise | +0.33 ± 2.59 | 1 of 3 | bob -0.50 |" in page
    assert "| mine | 2 | 1 | 0 | 0 | 90 | 110 | 50 |" in page
    users = tables.users_page(results)
    assert "| bob | accepted | 110 | 70 | - | **-0.50** | +0.500 |" in users
    assert "| ann | 5.00 / 2.000 / 0.500 | 6.50 / 2.000 / 0.500 |" in users


def test_scores_are_parted_by_the_snr_of_the_clips(tables):
    clips = [{**clip(value), "snr_db": snr_db} for value, snr_db in ((1.0, -5), (3.0, -5), (8.0, 10), (9.0, nan))]
    page = tables.snr_page([tables.Result("ann", "mine", {"noise": clips[:2], "clean": [clip(0.0)]}),
                            tables.Result("bob", "mine", {"noise": clips[2:], "clean": [clip(0.0)]})])
    assert "| system | -5 dB | 10 dB |" in page and "clean" not in page
    assert "| mine | 2.00 / 2.000 / 0.500 | 8.00 / 2.000 / 0.500 |" in page


def test_generalists_alone_make_a_page_without_gains(tables, results):
    page = tables.summary_page(results[:3])
    assert "generalist tiny" in page and "Gain" not in page


# Personalization: the runs.


@pytest.fixture
def runs(monkeypatch, tables):
    monkeypatch.setattr(program(monkeypatch, "user_scores"), "score", lambda *_: Scores(1.0, nan, 0.5))
    return program(monkeypatch, "personalization")


@pytest.fixture
def user(tmp_path):
    """A user folder with two tests in one set."""
    folder = tmp_path / "users" / "ann"
    rng = np.random.default_rng(0)
    for path in ["recordings/00.wav", "tests/noise/00.noisy.wav", "tests/noise/00.clean.wav",
                 "tests/noise/01.noisy.wav", "tests/noise/01.clean.wav"]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / path, 0.1 * rng.standard_normal(4000), 16_000, subtype="FLOAT")
    (folder / "tests/noise/tests.json").write_text(json.dumps([{"test": "00", "snr_db": -5}]))
    return folder


@pytest.fixture
def settings(runs, tmp_path):
    return runs.Settings(("noise", "missing"), tmp_path / "work", 60.0, 1, 0, resume=True)


def where(settings):
    return settings.sets, settings.work


def ours(runs, model_file):
    enhancer = Enhancer(model_file)
    return runs.our_system(enhancer)


def test_a_clip_is_scored_once_for_each_model(runs, user, settings, model_file, monkeypatch):
    first = runs.evaluate(user, ours(runs, model_file), *where(settings))
    assert list(first) == ["noise"]
    assert [row["test"] for row in first["noise"]] == ["00", "01"]
    assert first["noise"][0]["snr_db"] == -5 and isnan(first["noise"][1]["snr_db"])
    assert isnan(first["noise"][0]["pesq"])

    monkeypatch.setattr(sys.modules["user_scores"], "score_clip", lambda *_: pytest.fail("scored again"))
    np.testing.assert_equal(runs.evaluate(user, ours(runs, model_file), *where(settings)), first)


def test_a_peer_is_scored_beside_ours_and_one_that_cannot_be_made_is_one_line(runs, user, settings, tmp_path):
    (tmp_path / "strangers.py").write_text(
        "class Half:\n    def enhance(self, noisy):\n        return 0.5 * noisy\n"
        "def make(name):\n    return {'half': Half}[name]()\n")
    peer = runs.other_system("half", tmp_path / "strangers.py")
    assert [row["si_sdr_improvement"] for row in runs.evaluate(user, peer, *where(settings))["noise"]] == [1.0, 1.0]
    assert peer.enhance(np.ones(4, np.float32)).tolist() == [0.5] * 4
    with pytest.raises(PseError, match="no peer 'whole'"):
        runs.other_system("whole", tmp_path / "strangers.py")


@pytest.mark.parametrize("change", ["model", "sound"])
def test_another_model_or_another_sound_is_scored_anew(runs, user, settings, model_file, change):
    runs.evaluate(user, ours(runs, model_file), *where(settings))
    if change == "model":
        model_file.write_bytes(empty_model(hop_length=128))
    else:
        soundfile.write(user / "tests/noise/00.noisy.wav", np.zeros(4000), 16_000)
    runs.evaluate(user, ours(runs, model_file), *where(settings))
    assert len(list((settings.work / "scores").iterdir())) == 2


def test_a_finished_specialist_is_used_again(runs, user, settings, model_file, monkeypatch):
    start, calls = Enhancer(model_file), []

    def personalize(recordings, **arguments):
        calls.append(arguments)
        mine = Enhancer(model_file)
        mine.report = Report(KEPT, "no gain", n_steps=7, gain_db=0.25)
        return mine

    monkeypatch.setattr(runs.Enhancer, "personalize", personalize)
    task = runs.Task(user, "tiny", "pseudose+dp")
    _, made = runs.specialist(task, settings, start)
    enhancer, again = runs.specialist(task, settings, start)
    assert len(calls) == 1 and again == made and enhancer.digest == start.digest
    assert (made["status"], made["n_steps"], made["held_out_gain_db"]) == ("kept", 7, 0.25)

    runs.specialist(task, replace(settings, resume=False), start)
    runs.specialist(task, replace(settings, seed=1), start)
    runs.specialist(replace(task, method="auto:remove"), settings, start)
    assert [call["seed"] for call in calls] == [0, 0, 1, 0]
    assert [(call["method"], call["others"]) for call in calls[-2:]] == [("pseudose+dp", "keep"), ("auto", "remove")]


def test_a_failed_training_leaves_the_user_with_the_start_model(runs, user, settings, model_file, monkeypatch):
    def personalize(recordings, **_):
        raise PersonalizationError(f"{recordings}: ended without a result")

    monkeypatch.setattr(runs.Enhancer, "personalize", personalize)
    start = Enhancer(model_file)
    enhancer, made = runs.specialist(runs.Task(user, "tiny", "auto"), settings, start)
    assert enhancer is start
    assert made["status"] == "failed" and made["note"].startswith("ann")    # and no path of this machine
    assert not (settings.work / "specialists").exists()                     # so that --resume tries again


def test_json_has_neither_nan_nor_dataclasses(runs, tables):
    text = json.dumps(runs.plain({"mean": tables.Mean(nan, 1.0, 2)}), allow_nan=False)
    assert runs.unplain(json.loads(text))["mean"]["n"] == 2
    assert isnan(runs.unplain(json.loads(text))["mean"]["value"])


def test_users_are_folders_with_tests(runs, user):
    (user.parent / "notes").mkdir()
    assert runs.users_in(user.parent, None) == [user]
    assert runs.users_in(user.parent, ["bob"]) == []


# Endurance.


def test_the_last_hour_has_the_scenes_of_the_first(monkeypatch):
    endurance = program(monkeypatch, "endurance")
    speech = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    day = list(endurance.scenes(5, 8000, 0, speech))
    assert len(day) == 5
    for first, last in ((0, 3), (1, 4)):
        np.testing.assert_array_equal(day[first].noisy, day[last].noisy)
    assert not np.array_equal(day[2].clean, day[0].clean)
    assert all(np.count_nonzero(~(np.abs(scene.noisy) <= 10)) == scene.n_damaged for scene in day)


def test_endurance_says_what_drifted_grew_or_wore_off(monkeypatch):
    endurance = program(monkeypatch, "endurance")
    sound = endurance.Outcome(1.0, 0, 0.5, 10.0, 10.05, 7, 7, 0, 3, 60.0)
    assert sound.failures() == []
    for wrong in ({"length_drift": 1}, {"growth_mib": 2.5}, {"last_si_sdr_db": 9.8}, {"last_si_sdr_db": nan},
                  {"n_replaced": 6}, {"n_damaged_out": 1}):
        assert len(replace(sound, **wrong).failures()) == 1


def test_what_streams_cost_together_stands_beside_what_they_cost_alone(monkeypatch, tmp_path, model_file):
    together = program(monkeypatch, "together")
    monkeypatch.setattr(together, "installed_generalists", lambda: {"tiny": model_file})
    out, figures = tmp_path / "new" / "together.md", tmp_path / "new" / "together.json"
    monkeypatch.setattr("sys.argv", ["together.py", "--streams", "1", "3", "--turns", "3", "--out", str(out),
                                     "--json", str(figures)])
    together.main()
    assert "| tiny | 3 |" in out.read_text(encoding="utf-8")
    rows = json.loads(figures.read_text(encoding="utf-8"))["rows"]
    assert [row["streams"] for row in rows] == [1, 3] and all(row["steps together"] > 0 for row in rows)


def test_rates_are_measured_with_and_without_the_full_band(monkeypatch, tmp_path):
    rates = program(monkeypatch, "rates")
    monkeypatch.setattr(sys, "argv", ["rates.py", "--turns", "3", "--out", str(tmp_path / "rates")])
    rates.main()
    values = json.loads((tmp_path / "rates.json").read_text())
    assert len(values["rows"]) == 4 * len(rates.RATES) and all(row["us"] > 1 for row in values["rows"])
    assert "| 48000 Hz | 2 |" in (tmp_path / "rates.md").read_text()
