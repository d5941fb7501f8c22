import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pse_sdk

HEAVY = ["torch", "onnx", "safetensors", "av", "sounddevice", "scipy", "rich", "pesq", "pystoi", "matplotlib"]

# None in sys.modules: Python then says that there is no such module
FORBID = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY}))
"""

FORBID_FILES = "sys.modules.update(dict.fromkeys(['soundfile', 'soxr']))"

ENHANCE = """
import sys
import numpy as np
from pse_sdk import Enhancer

samples = np.random.default_rng(0).standard_normal((4800, 2)).astype(np.float32)
enhancer = Enhancer(sys.argv[1])
for rate in (16_000, 48_000):
    assert enhancer.enhance(samples, rate).any()
    with enhancer.stream(rate, 2) as stream:
        stream.process(samples)
        stream.flush()
"""


def run(*code, model="", **environment):
    """What a fresh process prints that runs the pieces of code."""
    result = subprocess.run([sys.executable, "-c", "\n".join(map(textwrap.dedent, code)), str(model)],
                            capture_output=True, text=True, check=False,
                            env={**os.environ, "PYTHONPATH": str(Path(pse_sdk.__file__).parents[1]), **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_enhancing_needs_no_torch_and_nothing_else_that_is_heavy(tiny_model):
    run(FORBID, ENHANCE, model=tiny_model)


def test_every_error_that_a_user_may_catch_is_at_the_top():
    family = [pse_sdk.PseError]
    for error in family:
        family += error.__subclasses__()
    assert {error.__name__ for error in family} <= set(pse_sdk.__all__)
    readme = (Path(pse_sdk.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert all(f"`{error.__name__}`" in readme for error in family)


def test_enhancing_samples_needs_no_libraries_for_files(tiny_model):
    run(FORBID, FORBID_FILES, ENHANCE, model=tiny_model)


def test_importing_the_package_imports_nothing_heavy():
    heavy = [*HEAVY, "soundfile", "soxr"]
    imported = run("import sys, pse_sdk", f"print(*[name for name in {heavy} if name in sys.modules])")
    assert not imported.split()


def test_without_torch_personalizing_says_what_to_install():
    told = run(FORBID, """
        import numpy as np
        from pse_sdk import Enhancer, PseError
        try:
            Enhancer.personalize((np.random.default_rng(0).standard_normal(16_000 * 30), 16_000), size="tiny")
        except PseError as error:
            print(type(error).__name__, error)
        """)
    assert told.startswith("MissingDependencyError") and "pip install" in told


@pytest.mark.parametrize("missing, arguments, extra", [
    ("rich", ["listen"], "live"), ("sounddevice", ["listen"], "live"), ("sounddevice", ["record", "me.wav"], "live"),
    ("sounddevice", ["devices"], "live"), ("av", ["enhance", "voice.m4a"], "phone"),
    ("av", ["personalize", "voice.m4a"], "phone"), ("torch", ["personalize", "voice.wav"], "train"),
    ("onnx", ["personalize", "voice.wav"], "train"), ("safetensors", ["personalize", "voice.wav"], "train"),
])
def test_a_command_says_which_extra_it_lacks(tiny_model, tmp_path, missing, arguments, extra):
    (tmp_path / "voice.m4a").write_bytes(b"\0\0\0\x18ftypM4A what phones record")
    model = ["--model", str(tiny_model)] if arguments[0] in ("listen", "enhance") else []
    told = run(f"""
        import os, sys
        os.chdir({str(tmp_path)!r})
        sys.modules[{missing!r}] = None
        from pse_sdk.cli import main
        sys.stderr = sys.stdout
        print(main({arguments + model}))
        """)
    line, code = told.splitlines()
    assert code == "2" and line.startswith("pse: ") and missing.replace("av", "PyAV") in line
    assert f"pip install 'pse_sdk[{extra}]'" in line
    assert [path.name for path in tmp_path.iterdir()] == ["voice.m4a"]


def test_telemetry_is_off_before_onnxruntime_is_imported():
    told = run("""
        import os, sys

        class Watch:
            def find_spec(self, name, path=None, target=None):
                if name == "onnxruntime":
                    print("telemetry off:", os.environ.get("ORT_DISABLE_TELEMETRY"))

        sys.meta_path.insert(0, Watch())
        import pse_sdk
        """, ORT_DISABLE_TELEMETRY="0")
    assert told == "telemetry off: 1\n"


@pytest.mark.parametrize("module", ["onnx_denoiser", "purification", "model_format", "stream"])
def test_telemetry_is_off_whichever_part_is_imported_first(module):
    told = run(f"import os, pse_sdk.{module}", "print(os.environ['ORT_DISABLE_TELEMETRY'])")
    assert told == "1\n"


def test_enhancing_leaves_no_file_in_the_home_folder(tiny_model, tmp_path):
    names = ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "TMPDIR", "LOCALAPPDATA")
    folders = {name: str(tmp_path / name.lower()) for name in names}
    for folder in folders.values():
        Path(folder).mkdir()
    run(ENHANCE, model=tiny_model, PYTHONDONTWRITEBYTECODE="1", **folders)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_enhancing_opens_no_socket(tiny_model):
    run("""
        import socket, sys

        def forbid(event, arguments):
            if event.startswith("socket."):
                raise AssertionError(f"{event} {arguments}")

        def refuse(*arguments, **options):
            raise AssertionError("a socket")

        socket.socket = socket.create_connection = socket.getaddrinfo = refuse
        sys.addaudithook(forbid)
        """, ENHANCE, model=tiny_model)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_the_runtime_holds_no_socket_and_starts_no_thread_of_its_own(tiny_model):
    run(ENHANCE, """
        import os
        links = []
        for name in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{name}"))
            except FileNotFoundError:
                pass
        assert not [link for link in links if link.startswith("socket:")], links
        threads = [open(f"/proc/self/task/{name}/comm").read().strip() for name in os.listdir("/proc/self/task")]
        assert len(threads) == 1, threads
        """, model=tiny_model, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")


def test_loading_a_model_leaves_the_arithmetic_of_the_process_alone(tiny_model):
    run(ENHANCE, "assert sys.float_info.min / 4 > 0 and np.float32(1e-40) * np.float32(0.5) > 0", model=tiny_model)
