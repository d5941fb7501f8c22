import getpass
import os
import platform
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pse_sdk import Enhancer
from pse_sdk.empty_model import empty_model
from pse_sdk.errors import ModelFileError, SettingsError
from pse_sdk.model_format import (
    FORMAT_VERSION,
    MAX_FILE_BYTES,
    ModelInfo,
    check_seal,
    digest_of,
    read_model,
    seal,
    write_whole,
)
from pse_sdk.onnx_denoiser import OnnxDenoiser

INFO = ModelInfo("tiny", 34_680, 16_000, 256, 512, 256, method="teacher", seconds_of_audio=123.5, seed=7,
                 created="2026-01-31", generalist="0" * 64, scores={"si_sdr_improvement_db": 4.25, "häßlich": -0.0})


def test_a_flip_of_any_byte_of_a_small_file_is_refused():
    sealed = empty_model()
    for position in range(len(sealed)):
        for flip in (0x01, 0x20, 0x80):
            damaged = bytearray(sealed)
            damaged[position] ^= flip
            with pytest.raises(ModelFileError):
                check_seal(bytes(damaged))


@settings(max_examples=100, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_never_reaches_the_runtime(tiny_model, share, flip):
    damaged = bytearray(tiny_model.read_bytes())
    damaged[int(share * len(damaged))] ^= flip
    with pytest.raises(ModelFileError):
        OnnxDenoiser(bytes(damaged))


@pytest.mark.parametrize("n_bytes", [0, 1, 63, 64, 145, 146, 147])
def test_a_file_that_was_cut_off_is_refused(tmp_path, n_bytes):
    whole = empty_model()
    for content in (whole[:n_bytes], whole[len(whole) - n_bytes:], whole[n_bytes + 1:], whole[:-n_bytes - 1]):
        path = tmp_path / "me.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelFileError):
            Enhancer(path)


def test_bytes_after_the_seal_are_refused():
    with pytest.raises(ModelFileError, match="cut off"):
        check_seal(empty_model() + b"\0")


@pytest.mark.parametrize("content", [b"", b"RIFF....WAVEfmt ", b"<html>404</html>", seal(b""), seal(b"not a graph")])
def test_what_is_no_model_is_refused_quietly(tmp_path, capfd, content):
    path = tmp_path / "download.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="download.onnx"):
        Enhancer(path)
    assert capfd.readouterr() == ("", "")


def sealed_with(sealed, metadata=None, **changes):
    """The same graph with other `pse.` entries, sealed again."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(sealed)
    entries = {e.key: e.value for e in model.metadata_props if e.key != "pse.sha256"} if metadata is None else metadata
    onnx.helper.set_model_props(model, {**entries, **{f"pse.{key}": value for key, value in changes.items()}})
    return seal(model.SerializeToString())


def test_the_onnx_of_another_program_is_refused():
    with pytest.raises(ModelFileError, match="pse.format"):
        OnnxDenoiser(sealed_with(empty_model(), metadata={"author": "somebody"}))


def test_a_newer_format_is_refused_with_advice():
    with pytest.raises(ModelFileError, match=f"format {FORMAT_VERSION + 1}.*update"):
        OnnxDenoiser(sealed_with(empty_model(), format=str(FORMAT_VERSION + 1)))


@pytest.mark.parametrize("changes", [{"hop_length": "128"}, {"hop_length": "0"}, {"hop_length": "many"}, {"delay": ""},
                                     {"scores": "{"}, {"seed": "1.5"}])
def test_a_description_that_does_not_fit_is_refused(changes):
    with pytest.raises(ModelFileError, match="description"):
        OnnxDenoiser(sealed_with(empty_model(), **changes))


def test_the_description_survives_its_metadata():
    assert ModelInfo.from_metadata(INFO.to_metadata()) == INFO


@settings(max_examples=50)
@given(st.builds(ModelInfo, size=st.text(max_size=9), n_parameters=st.integers(0, 10**9), sample_rate=st.integers(0),
                 hop_length=st.integers(0), n_fft=st.integers(0), delay=st.integers(0),
                 seconds_of_audio=st.floats(0, 1e9), seed=st.integers(),
                 scores=st.dictionaries(st.text(max_size=9), st.floats(allow_nan=False, allow_infinity=False))))
def test_any_description_survives_its_metadata(info):
    assert ModelInfo.from_metadata(info.to_metadata()) == info


@pytest.mark.parametrize("key", ["size", "hop_length", "scores", "delay"])
def test_a_description_without_an_entry_is_refused(key):
    metadata = INFO.to_metadata()
    del metadata[f"pse.{key}"]
    with pytest.raises(ModelFileError, match=key):
        ModelInfo.from_metadata(metadata)


def test_saving_and_loading_changes_nothing(enhancer, tmp_path, noisy):
    enhancer.save(tmp_path / "me.onnx")
    loaded = Enhancer(tmp_path / "me.onnx")
    assert (loaded.info, loaded.digest) == (enhancer.info, enhancer.digest)
    np.testing.assert_array_equal(loaded.enhance(noisy, 16_000), enhancer.enhance(noisy, 16_000))
    assert (tmp_path / "me.onnx").read_bytes()[-64:].decode() == digest_of(read_model(tmp_path / "me.onnx"))


def test_the_file_is_onnx_for_everybody(tiny_model):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tiny_model)
    onnx.checker.check_model(model, full_check=True)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert entries["pse.sha256"] == digest_of(tiny_model.read_bytes())
    assert entries["pse.hop_length"] == "256"


def test_the_file_names_nobody_and_no_place(tiny_model):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tiny_model)
    for tensor in model.graph.initializer:      # weights are noise, in which anything may be found
        tensor.ClearField("raw_data")
    text = model.SerializeToString()
    places = {Path.home(), Path.cwd(), Path(__file__).parent, Path(tempfile.gettempdir()), tiny_model.parent,
              Path(sys.prefix), Path(np.__file__).parents[1]} - {Path("/")}
    for told in [*map(str, places), getpass.getuser(), platform.node(), ".py", "stack_trace", "site-packages"]:
        assert told.encode() not in text, told


def test_the_size_of_the_file_says_nothing_of_what_was_learnt(tiny_model, tiny_network, monkeypatch):
    torch = pytest.importorskip("torch")
    from pse_sdk.training import onnx_export
    monkeypatch.setattr(onnx_export, "PARITY_STEPS", 10)
    torch.manual_seed(1)
    other = type(tiny_network)(tiny_network.config)
    assert len(onnx_export.export_model(other, ModelInfo("tiny", 0, 0, 0, 0, 0))) == tiny_model.stat().st_size


def test_a_file_that_is_too_large_is_refused_before_it_is_all_read(tmp_path):
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ModelFileError, match="at most"):
        read_model(path)


@pytest.mark.parametrize("path", ["missing.onnx", "", ".", "a\0b", "x" * 300, "missing/me.onnx"])
def test_a_path_that_cannot_be_read_is_a_model_file_error(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        Enhancer(path)


@pytest.mark.parametrize("path", [3, True, b"me.onnx", np.zeros(5)], ids=["number", "bool", "bytes", "array"])
def test_a_model_that_is_no_path_is_refused(path):
    with pytest.raises(SettingsError, match="^model=.*give a path"):
        Enhancer(path)


@pytest.mark.parametrize("path", [None, 3, b"me.onnx"])
def test_saving_to_what_is_no_path_is_refused(enhancer, path):
    with pytest.raises(SettingsError, match="^path=.*give a path"):
        enhancer.save(path)


def test_no_size_is_no_size():
    with pytest.raises(SettingsError, match="no model of size ''"):
        Enhancer(size="")


@pytest.mark.parametrize("path", ["missing/me.onnx", "file/me.onnx", "folder", "", ".", "/", "a\0b", "x" * 256])
def test_a_path_that_cannot_be_written_is_a_model_file_error_and_leaves_nothing(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelFileError):
        write_whole(path, b"new")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_a_model_file_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ModelFileError, match="cannot be written"):
        write_whole(tmp_path / "me.onnx", b"new")


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("録" * 80 + ".onnx")     # 245 of 255 bytes
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_when_the_disk_is_full_the_old_file_stays(tmp_path, monkeypatch, call):
    path = tmp_path / "me.onnx"
    write_whole(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*(os, "fsync") if call == "fsync" else (Path, "replace"), fail)
    with pytest.raises(ModelFileError, match="No space left"):
        write_whole(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["me.onnx"] and path.read_bytes() == b"old"


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "me.onnx", b"new")
    assert not list(tmp_path.iterdir())


def test_two_threads_that_write_the_same_file_never_mix_their_content(tmp_path):
    path, contents = tmp_path / "me.onnx", [bytes([i]) * 200_000 for i in range(2)]
    write_whole(path, contents[0])

    def write(content):
        for _ in range(20):
            write_whole(path, content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    seen = []
    while any(thread.is_alive() for thread in threads):
        seen.append(path.read_bytes())
    assert set(seen) <= set(contents) and [p.name for p in tmp_path.iterdir()] == ["me.onnx"]
