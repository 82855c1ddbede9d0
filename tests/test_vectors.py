"""tests/vectors: the pipeline's own code and the web app's give what stands there; the phones' apps do likewise."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from targets import latency, strict
from targets.devices import browser
from targets.devices.job import Job, result_of
from targets.manifest import VERSION, Manifest
from tests.vectors import make

VECTORS = Path(make.__file__).parent


def cases(name: str) -> list[dict]:
    found = json.loads((VECTORS / name).read_text())
    assert found
    return found


@pytest.mark.parametrize("name", sorted(make.FILES))
def test_the_files_are_what_the_pipeline_makes(name):
    assert (VECTORS / name).read_text() == make.content(name), "python -m tests.vectors.make"


@pytest.mark.parametrize("case", cases("manifests.json"), ids=lambda case: case["name"])
def test_manifests_are_taken_or_refused(case):
    def read() -> Manifest:
        version = ("manifest_version", VERSION)
        return strict.parse_json(case["text"].encode(), Manifest, "manifest.json", version=version)

    if case["good"]:
        assert read().labels
    else:
        with pytest.raises(ValueError, match=r"manifest\.json"):
            read()


@pytest.mark.parametrize("case", cases("results.json"), ids=lambda case: case["name"])
def test_results_are_read_as_they_were_meant(case):
    job = strict.parse_json(json.dumps(case["job"]).encode(), Job, "job.json", version=("version", 1))
    result = result_of(json.dumps(case["result"]).encode(), job)
    assert (result.refused, result.golden_error, result.top1) == tuple(
        case["result"][key] for key in ("refused", "golden_error", "top1")
    )
    for file, told in case["result"]["latency"].items():
        found = result.latency[file]
        assert (found.p50_ms, found.p90_ms, found.valid) == (told["p50_ms"], told["p90_ms"], told["valid"])
        assert latency.summarise(case["samples_ns"], told["seconds"], 3).p50_ms == told["p50_ms"]


def test_equal_answers_come_in_order():
    for case in cases("answers.json"):
        row = np.array([np.nan if value is None else value for value in case["logits"]], np.float32)
        assert int(row.argmax()) == case["argmax"]
        assert len(case["best"]) == min(5, len(row))


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("npm"), reason="no Node.js")
def test_the_web_app_agrees(tmp_path):
    said: list[str] = []
    assert browser.build(said.append) is None, said  # its packages
    entry = VECTORS / "web.ts"
    command = [browser.WEB / "node_modules/.bin/vite", "build", VECTORS, "--ssr", entry, "--outDir", tmp_path]
    built = subprocess.run([*command, "--logLevel", "warn"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (program,) = tmp_path.glob("web.*js")
    done = subprocess.run(["node", program, VECTORS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {name: len(cases(name)) for name in make.FILES if name != "results.json"}
