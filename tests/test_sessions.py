"""Converters get ready while a model is trained, where there is memory for that, and end with the command."""

from pathlib import Path

import pytest

from pipeline import sessions
from targets import TARGETS, artifact, manifest
from targets.formats import FORMATS


@pytest.mark.parametrize(("free_mb", "begun"), [(8000, True), (None, True), (4000, False)])
def test_converters_get_ready_where_there_is_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_mb: float | None, begun: bool
) -> None:
    done: list[str] = []
    monkeypatch.setattr(artifact, "available_memory_mb", lambda: free_mb)
    monkeypatch.setattr(artifact, "begin", done.append)
    monkeypatch.setattr(artifact, "end_converters", lambda: done.append("end"))
    wanted = [FORMATS[name].converter for name in TARGETS["host"].budget()]
    with sessions.converters_ready(tmp_path, "host"):
        assert done == (wanted if begun else [])
    assert done[-1] == "end"


def test_what_is_deployed_needs_no_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "begin", lambda module: pytest.fail("it would only take time"))
    path = tmp_path / "artifacts" / "host" / manifest.FILE_NAME
    path.parent.mkdir(parents=True)
    path.touch()
    with sessions.converters_ready(tmp_path, "host"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted({format.converter for format in FORMATS.values()}))
def test_every_converter_gets_ready_and_says_nothing(module: str, capfd: pytest.CaptureFixture[str]) -> None:
    artifact._process.cache_clear()  # one that writes to what is captured here
    artifact._process(module).submit(artifact._get_ready, module).result()
    assert capfd.readouterr() == ("", "")
    artifact._process.cache_clear()
