import importlib.util
import json
import sys
from pathlib import Path

import pytest

from pse_sdk.errors import ModelFileError, SettingsError
from pse_sdk.model_format import ModelInfo
from pse_sdk.onnx_denoiser import OnnxDenoiser

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
from pse_sdk.training import onnx_export  # noqa: E402
from pse_sdk.training.network import load_network, save_weights  # noqa: E402

PROGRAM = Path(__file__).parent.parent / "export" / "models.py"


@pytest.fixture
def program(monkeypatch):
    """Run it with arguments."""
    monkeypatch.setattr(onnx_export, "PARITY_STEPS", 50)
    spec = importlib.util.spec_from_file_location("export_models", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(PROGRAM), *map(str, arguments)])
        module.main()
    return run


def test_a_size_exported_again_has_the_weights_beside_it_and_the_description_it_had(program, tmp_path, tiny_network):
    told = ModelInfo("tiny", 0, 0, 0, 0, 0, created="2026-01-31", scores={"hours_of_mixtures": 3.5})
    other = type(tiny_network)(tiny_network.config)
    (tmp_path / "tiny.onnx").write_bytes(onnx_export.export_model(other, told))
    save_weights(tiny_network, tmp_path / "tiny.safetensors")
    before = OnnxDenoiser(tmp_path / "tiny.onnx")
    program("--again", "tiny", "--into", tmp_path)
    after = OnnxDenoiser(tmp_path / "tiny.onnx")
    assert after.info == before.info and after.info.scores == told.scores
    assert after.model == onnx_export.export_model(tiny_network, told) != before.model


@pytest.fixture
def run(tmp_path, tiny_network):
    """What a training leaves, in a folder of any name."""
    folder = tmp_path / "my first"
    folder.mkdir()
    save_weights(tiny_network, folder / "weights.safetensors")
    torch.save({"settings": {"what": "tiny"}, "step": 7, "seconds": 1.0, "network": {}, "average": {},
                "optimizers": []}, folder / "checkpoint.pt")
    rows = [{"step": step, "hours": step / 2, "si_sdr_improvement": 1.0} for step in (5, 7, 9)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_becomes_a_model_file_whatever_its_folder_is_called(program, tmp_path, tiny_network, run):
    program(run, "--into", tmp_path / "models")
    model = OnnxDenoiser(tmp_path / "models" / "tiny.onnx")
    assert model.info.size == "tiny" and model.info.scores["hours_of_mixtures"] == 3.5
    assert (tmp_path / "models" / "tiny.safetensors").exists()


@pytest.mark.parametrize("lost", ["checkpoint.pt", "log.jsonl"])
def test_what_no_training_left_is_refused(program, tmp_path, run, lost):
    (run / lost).write_text("")
    with pytest.raises(SettingsError, match="my first is not what a training left"):
        program(run, "--into", tmp_path / "models")


def test_without_anything_to_export_it_says_so(program, capsys):
    with pytest.raises(SystemExit):
        program()
    assert "--again" in capsys.readouterr().err


def test_weights_that_are_mixed_lie_between_both_files_and_keep_no_old_score(program, tmp_path, tiny_network, run):
    program(run, "--into", tmp_path)
    other = type(tiny_network)(tiny_network.config)
    save_weights(other, tmp_path / "before.safetensors")
    program("--mix", "tiny", tmp_path / "before.safetensors", "0.25", "--into", tmp_path)
    mixed = load_network("tiny", tmp_path / "tiny.safetensors")
    for name, value in mixed.state_dict().items():
        expected = 0.75 * tiny_network.state_dict()[name] + 0.25 * other.state_dict()[name]
        assert torch.allclose(value, expected, atol=1e-6), name
    model = OnnxDenoiser(tmp_path / "tiny.onnx")
    assert model.model == onnx_export.export_model(mixed, model.info)
    assert model.info.scores == {"hours_of_mixtures": 3.5}


@pytest.mark.parametrize("share", ["1.5", "-0.1", "nan", "half"])
def test_a_share_that_is_none_is_refused_and_nothing_is_touched(program, tmp_path, run, share):
    program(run, "--into", tmp_path)
    before = (tmp_path / "tiny.safetensors").read_bytes()
    with pytest.raises(SettingsError, match="expected a share between 0 and 1"):
        program("--mix", "tiny", tmp_path / "tiny.safetensors", share, "--into", tmp_path)
    assert (tmp_path / "tiny.safetensors").read_bytes() == before


@pytest.mark.parametrize("damage", [lambda weights: b"", lambda weights: weights[:-100], None])
def test_weights_that_are_none_or_of_another_size_are_refused_and_nothing_is_touched(program, tmp_path, run, damage):
    program(run, "--into", tmp_path)
    before, other = (tmp_path / "tiny.safetensors").read_bytes(), tmp_path / "other.safetensors"
    if damage is None:
        save_weights(torch.nn.Linear(3, 3), other)
    else:
        other.write_bytes(damage(before))
    with pytest.raises(ModelFileError, match="other.safetensors does not hold the weights of a tiny network"):
        program("--mix", "tiny", other, "0.5", "--into", tmp_path)
    assert (tmp_path / "tiny.safetensors").read_bytes() == before
