"""README's code runs as it is printed, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_library_example_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "Pruner(" in block)
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=4
    ).train()
    names = {
        "model": model,
        "loader": [(torch.randn(8, 3, 32, 32), torch.randint(0, 4, (8,))) for _ in range(2)] * 50,
        "criterion": torch.nn.CrossEntropyLoss(),
        "optimizer": torch.optim.AdamW(model.parameters(), 1e-4),
    }
    exec(code.replace("len(loader)", "2"), names)  # the loader above holds all 50 epochs
    from dap import count_params, load_compact

    small = load_compact("small")
    assert count_params(small) <= 0.25 * sum(p.numel() for p in timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=4).parameters())  # fmt: skip
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(small.eval()(image), names["small"].eval()(image))


def test_every_make_verb_in_readme_exists():
    verbs = set(re.findall(r"^    make ([a-z-]+)|`make ([a-z-]+)", README, re.M))
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for verb in {a or b for a, b in verbs}:
        assert f"make {verb} " in text, verb


def test_every_file_in_readme_exists_and_every_module_has_its_line():
    named = set(re.findall(r"`((?:dap|pipeline|targets)/[\w./]+)`", README))
    for name in named:
        assert (ROOT / name).exists(), name
    rows = "\n".join(line for line in README.splitlines() if line.startswith("| `"))
    for path in [*(ROOT / "dap").glob("*.py"), *(ROOT / "pipeline").glob("*.py"), *(ROOT / "targets").glob("*.py")]:
        assert path.name in rows or path.name == "__init__.py", path


def test_every_option_in_readme_is_known():
    line = next(row for row in README.splitlines() if row.startswith("| `make prune"))
    listed = re.findall(r"[A-Z_]{2,}", line.split("Also")[1])
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "prune", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    for name in listed:
        assert f"--{name.lower().replace('_', '-')}" in done.stdout, name


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_tables_are_those_that_a_command_has_written(page):
    """Below `<!-- from docs/results/x.md -->` every table line is one of that file's."""
    found = 0
    for name, table in re.findall(
        r"<!-- from (docs/results/[\w.-]+\.md) -->\n((?:\|.*\n)+)", (ROOT / page).read_text()
    ):
        printed = (ROOT / name).read_text().splitlines()
        for line in table.splitlines():
            assert line in printed, line
            found += 1
    assert found > 8
