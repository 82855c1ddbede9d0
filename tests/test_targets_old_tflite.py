"""Every precision in tflite-runtime 2.14.0, the last of its name, which boards still have. It needs Python <= 3.11.

It lives in an environment of its own: it needs numpy < 2.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_targets_graph import vit
from test_targets_tflite import export, photos, run, snr_db

from targets import tflite
from targets.formats import FORMATS, TFLITE_RUNTIME_2_14

pytestmark = pytest.mark.slow

PRECISIONS = FORMATS["tflite"].precisions
WRONG = [name for name, known in PRECISIONS.items() if TFLITE_RUNTIME_2_14 in known.wrong_in]

# Least dB between the two runtimes. Where layers compute in float32 they differ in the order of sums only; integer
# layers round at other places, which costs about what quantisation itself costs.
AGREEMENT_DB = {"int8-dynamic-tensor": 28, "int8-weights": 100, "int8-static": 28, "fp16": 100, "fp32": 100}
# In float32, on this machine; test_targets_float16.py has a processor that computes in float16.
AGREEMENT_DB |= {name: AGREEMENT_DB[known.float16_of] for name, known in PRECISIONS.items() if known.float16_of}
# What a wrong precision stays below.
WRONG_DB = 10

SCRIPT = """
import json, sys
import numpy as np
from tflite_runtime.interpreter import Interpreter

folder, logits, refused = sys.argv[1], {}, {}
images = np.load(f"{folder}/images.npy").astype(np.float32)
for name in sys.argv[2:]:
    try:
        interpreter = Interpreter(model_path=f"{folder}/{name}.tflite", num_threads=1)
        interpreter.allocate_tensors()
    except ValueError as error:
        refused[name] = str(error)
        continue
    rows = []
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
        interpreter.invoke()
        rows.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0].tolist())
    logits[name] = rows
print(json.dumps({"logits": logits, "refused": refused}))
"""


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with tflite-runtime 2.14.0."""
    python = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if python is None:
        pytest.skip("tflite-runtime 2.14.0 has no wheels for Python > 3.11, and there is no python3.11")
    folder = tmp_path_factory.mktemp("old") / "venv"
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    requirements = Path(__file__).with_name("requirements-tflite-runtime.txt")
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--require-hashes", "-r", requirements],
        capture_output=True,
        text=True,
    )
    assert "DO NOT MATCH THE HASHES" not in pip.stderr
    if pip.returncode:
        errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")]
        pytest.skip(f"tflite-runtime 2.14.0 cannot be installed here: {' '.join(errors) or pip.stderr}")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every precision's file, and those that are marked as too new for the old runtime without that mark."""
    folder = tmp_path_factory.mktemp("precisions")
    model = vit(depth=2, embed_dim=128, num_heads=4, num_classes=50)
    for precision in PRECISIONS:
        export(model, folder / f"{precision}.tflite", precision)
    for precision in WRONG:
        unmarked = tflite._require((folder / f"{precision}.tflite").read_bytes(), 5, "2.9.0")
        (folder / f"{precision}-unmarked.tflite").write_bytes(unmarked)
    np.save(folder / "images.npy", photos(32))
    return folder


@pytest.fixture(scope="module")
def found(old_python: Path, folder: Path) -> dict[str, dict]:
    """What the old runtime makes of the files: logits by name, and messages of refusal by name."""
    names = [path.stem for path in folder.glob("*.tflite")]
    process = subprocess.run(
        [old_python, "-c", SCRIPT, folder, *names], capture_output=True, text=True, check=True, timeout=300
    )
    return json.loads(process.stdout)


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p not in WRONG])
def test_the_old_runtime_computes_what_the_new_one_computes(precision: str, found: dict, folder: Path) -> None:
    old = np.array(found["logits"][precision])
    assert snr_db(run(folder / f"{precision}.tflite"), old) >= AGREEMENT_DB[precision]


@pytest.mark.parametrize("precision", WRONG)
def test_the_old_runtime_refuses_what_it_would_compute_wrongly(precision: str, found: dict, folder: Path) -> None:
    assert "FULLY_CONNECTED' version '12'" in found["refused"][precision]
    unmarked = folder / f"{precision}-unmarked.tflite"
    new = run(unmarked)
    np.testing.assert_array_equal(new, run(folder / f"{precision}.tflite"))
    assert snr_db(new, np.array(found["logits"][unmarked.stem])) < WRONG_DB, (
        f"tflite-runtime 2.14 computes {precision} well: its entry in FORMATS must not say wrong_in"
    )
