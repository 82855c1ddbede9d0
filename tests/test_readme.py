"""What README and docs/ say is so: code runs as printed, commands, options and files exist, links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
}


def test_the_library_example_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", PAGES["docs/method.md"], re.S) if "Pruner(" in block
    )
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


def test_readme_fits_on_two_pages():
    assert len(README.encode()) < 10_000


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page):
    here = (ROOT / page).parent
    links = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", PAGES[page])
    for link in (a or b for a, b in links):
        assert (here / link).exists(), link


def test_every_page_is_linked_from_readme():
    assert [name for name in PAGES if name != "README.md" and f"]({name})" not in README] == []


def test_every_make_verb_in_the_docs_exists():
    verbs = {verb for text in PAGES.values() for verb in re.findall(r"^    make ([a-z-]+)|`make ([a-z-]+)", text, re.M)}
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for verb in {a or b for a, b in verbs}:
        assert f"make {verb} " in text, verb


def test_every_file_in_the_docs_exists_and_every_module_has_its_line():
    for text in PAGES.values():
        for name in re.findall(r"`((?:dap|pipeline|targets|tests)/[\w./-]+)`", text):
            assert (ROOT / name).exists(), name
    rows = [line for line in PAGES["docs/files.md"].splitlines() if line.startswith("| `")]
    for package in ("dap", "pipeline", "targets"):
        for path in (ROOT / package).rglob("*.py"):
            folder = path.parent.relative_to(ROOT).as_posix()
            mine = "\n".join(row for row in rows if f"`{folder}/" in row)
            assert path.name in mine or path.name == "__init__.py", path


def test_every_option_in_readme_is_known():
    line = next(row for row in README.splitlines() if row.startswith("| `make prune"))
    listed = re.findall(r"[A-Z_]{2,}", line.split("Also")[1])
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "prune", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    for name in listed:
        assert f"--{name.lower().replace('_', '-')}" in done.stdout, name


@pytest.mark.parametrize("page", sorted(name for name, text in PAGES.items() if "<!-- from" in text))
def test_tables_are_those_that_a_command_has_written(page):
    """Below `<!-- from docs/results/x.md -->` every table line is one of that file's."""
    found = 0
    for name, table in re.findall(r"<!-- from (docs/results/[\w.-]+\.md) -->\n((?:\|.*\n)+)", PAGES[page]):
        printed = (ROOT / name).read_text().splitlines()
        for line in table.splitlines():
            assert line in printed, line
            found += 1
    assert found >= 8
