import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
PROGRAMS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(PROGRAMS)
    return importlib.import_module("learning_curves")


def rows_of(score, hours, name="si_sdr_improvement"):
    return [{"step": i + 1, "hours": float(h), name: float(score(h))} for i, h in enumerate(hours)]


def test_the_gain_is_that_of_the_last_doubling_of_hours(program):
    curve = program.curve_of("tiny", rows_of(lambda hours: 3 + 0.5 * np.log2(hours), range(10, 210, 10)))
    assert curve.gain == pytest.approx(0.5) and "more would still help" in curve.verdict


def test_a_curve_that_has_flattened_says_so_whatever_it_did_before(program):
    curve = program.curve_of("tiny", rows_of(lambda hours: min(hours, 90) / 20, range(10, 210, 10)))
    assert curve.gain == pytest.approx(0) and "hardly help" in curve.verdict


def test_noise_that_hides_the_slope_is_called_so(program):
    rng = np.random.default_rng(0)
    curve = program.curve_of("tiny", rows_of(lambda hours: 3 + rng.standard_normal(), range(10, 210, 10)))
    assert "cannot be told" in curve.verdict


def test_one_odd_row_changes_little(program):
    rows = rows_of(lambda hours: 3 + 0.5 * np.log2(hours), range(10, 210, 10))
    rows[-1]["si_sdr_improvement"] -= 0.4
    assert program.curve_of("tiny", rows).gain == pytest.approx(0.5, abs=0.1)


def test_where_less_is_better_a_fall_is_a_gain(program):
    curve = program.curve_of("snr_predictor", rows_of(lambda hours: 9 - 0.5 * np.log2(hours), range(10, 210, 10),
                                                      name="snr_error_db"))
    assert curve.gain == pytest.approx(0.5)


def test_of_rows_for_one_step_the_last_counts(program):
    rows = rows_of(lambda hours: 1, [10, 20])
    [curve] = program.curves_of("tiny", [*rows, {**rows[1], "si_sdr_improvement": 2.0}])
    assert curve.values == [1, 2] and "too few hours" in curve.verdict


def test_other_shares_of_speech_are_another_curve(program):
    rows = rows_of(lambda hours: 1, range(10, 210, 10))
    rows = [{**row, "speech_share": ["librispeech", 0.85] if row["hours"] > 150 else []} for row in rows]
    assert [curve.model for curve in program.curves_of("tiny", rows)] == ["tiny", "tiny, librispeech 85%"]


def test_what_a_network_was_taught_is_another_curve(program):
    rows = rows_of(lambda hours: 1, range(10, 210, 10))
    rows = [{**row, "teachers": ["dtln", "package"] if row["hours"] > 150 else [], "teacher_share": 0.5}
            for row in rows]
    assert [curve.model for curve in program.curves_of("tiny", rows)] == [
        "tiny", "tiny, 50% taught by dtln and package"]


def test_scores_on_other_mixtures_are_another_curve(program):
    rows = rows_of(lambda hours: 3 + 0.5 * np.log2(hours), range(10, 210, 10))
    rows = [{**row, "snrs_db": [-5, 20] if row["hours"] < 150 else [-10, 15]} for row in rows]
    first, second = program.curves_of("tiny", rows)
    assert (first.model, second.model) == ("tiny, -5 to 20 dB", "tiny, -10 to 15 dB")
    assert first.hours[-1] == 140 and first.gain == pytest.approx(0.5)
    assert "too few hours" in second.verdict        # 150 to 200 are no doubling


def test_mixtures_of_another_length_are_another_curve(program):
    rows = [{**row, "snrs_db": [-5, 20], "mixture_seconds": 2.56 if row["hours"] < 50 else 5.12}
            for row in rows_of(lambda hours: hours, range(10, 100, 10))]
    assert [curve.model for curve in program.curves_of("teacher", rows)] == ["teacher, -5 to 20 dB, 2.56 s",
                                                                             "teacher, -5 to 20 dB, 5.12 s"]


def test_another_loss_is_another_curve(program):
    rows = [row if row["hours"] < 50 else {**row, "intelligibility": 0.6} for row in rows_of(abs, range(10, 100, 10))]
    assert [curve.model for curve in program.curves_of("tiny", rows)] == ["tiny", "tiny, perceptual loss"]


def test_hours_that_round_to_nothing_are_no_matter(program):
    page = program.markdown_page(program.curves_of("tiny", rows_of(lambda hours: hours, [0.0, 1.0, 2.0])))
    assert "| tiny | 1 | 1.00 |" in page and "| tiny | 0 |" not in page


def test_half_a_row_that_a_killed_run_left_is_passed_over(program, monkeypatch, tmp_path):
    rows = "".join(json.dumps(row) + "\n" for row in rows_of(lambda hours: hours, [1.0, 2.0]))
    (tmp_path / "log.jsonl").write_text(rows + '{"step": 3, "hou')
    monkeypatch.setattr(sys, "argv", ["learning_curves", str(tmp_path), "--out", str(tmp_path / "t.md"),
                                      "--json", str(tmp_path / "t.json")])
    program.main()
    [curve] = json.loads((tmp_path / "t.json").read_text())["curves"]
    assert curve["values"] == [1.0, 2.0] and curve["gain"] is None


def test_the_program_writes_a_table_and_its_figures(program, monkeypatch, tmp_path, capsys):
    (tmp_path / "tiny").mkdir()
    rows = rows_of(lambda hours: hours / 100, range(10, 210, 10))
    (tmp_path / "tiny/log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["learning_curves", str(tmp_path / "tiny"), "--out", str(tmp_path / "t.md"),
                                      "--json", str(tmp_path / "t.json")])
    program.main()
    page = (tmp_path / "t.md").read_text()
    assert page in capsys.readouterr().out
    assert "| tiny | 10 | 0.10 |" in page and "| tiny | 200 | 2.00 |" in page
    assert json.loads((tmp_path / "t.json").read_text())["curves"][0]["hours"][-1] == 200


@pytest.mark.parametrize("log, told", [(None, "holds no log.jsonl"), ("", "holds no evaluation"),
                                       ('{"step": 4, "ho', "holds no evaluation")])
def test_a_folder_without_a_log_is_refused(program, monkeypatch, tmp_path, capsys, log, told):
    if log is not None:
        (tmp_path / "log.jsonl").write_text(log)
    monkeypatch.setattr(sys, "argv", ["learning_curves", str(tmp_path)])
    with pytest.raises(SystemExit):
        program.main()
    assert told in capsys.readouterr().err
