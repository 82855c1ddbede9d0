"""One file from a server on this machine that breaks off, lies, and changes its mind."""

import pytest

from pipeline.data.transfer import TransferFailed, download


def quiet(*_: object) -> None:
    """Progress that nobody sees."""


@pytest.mark.parametrize("version", ['"1"', "Mon, 01 Apr 2019 00:00:00 GMT"])
def test_a_connection_that_is_cut_goes_on_where_it_was(version, server, tmp_path):
    server.files["x"], server.version = bytes(range(256)) * 40, version
    server.cuts = [3000, 1, 5000, 10**6]
    download(f"{server.url}/x", tmp_path / "x", 10**6, quiet)
    assert (tmp_path / "x").read_bytes() == server.files["x"]
    assert server.asked == ["x", "x bytes=3000-", "x bytes=3001-", "x bytes=8001-"]
    assert server.sent == len(server.files["x"])
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(("ranges", "version"), [(False, '"1"'), (True, None), (True, 'W/"weak"')])
def test_without_ranges_or_a_sure_version_it_begins_anew(ranges, version, server, tmp_path):
    server.files["x"], server.ranges, server.version = bytes(range(256)) * 40, ranges, version
    server.cuts = [3000, 10**6]
    download(f"{server.url}/x", tmp_path / "x", 10**6, quiet)
    assert (tmp_path / "x").read_bytes() == server.files["x"]
    assert server.sent == 3000 + len(server.files["x"])


@pytest.mark.parametrize("new", [b"second" * 1000, b"short"])
def test_a_file_that_changes_on_the_server_is_never_a_mixture(new, server, tmp_path):
    server.files["x"], server.cuts = b"first." * 1000, [3000]

    def change(done: int, total: int | None) -> None:
        server.files["x"], server.version, server.cuts = new, '"2"', []

    download(f"{server.url}/x", tmp_path / "x", 10**6, change)
    assert (tmp_path / "x").read_bytes() == new


def test_a_part_longer_than_the_servers_file_is_given_up(server, tmp_path):
    server.files["x"], server.cuts = bytes(6000), [3000]

    def shorten(done: int, total: int | None) -> None:
        server.files["x"], server.cuts = bytes(100), []

    download(f"{server.url}/x", tmp_path / "x", 10**6, shorten)
    assert (tmp_path / "x").read_bytes() == bytes(100)


def test_a_server_that_sends_too_much_fills_no_disk(server, tmp_path):
    server.files["x"] = bytes(5000)
    for server.lengths in (True, False):
        with pytest.raises(TransferFailed, match=r"more than 3\.0 kB"):
            download(f"{server.url}/x", tmp_path / "x", 3000, quiet)
        assert not (tmp_path / "x.part").exists()


def test_without_lengths_the_end_is_the_end(server, tmp_path):
    server.files["x"], server.lengths = bytes(5000), False
    download(f"{server.url}/x", tmp_path / "x", 10**6, quiet)
    assert (tmp_path / "x").read_bytes() == bytes(5000)


def test_redirects_are_followed(server, tmp_path):
    server.files["x"], server.cuts = bytes(5000), [2000, 10**6]
    download(f"{server.url}/moved/x", tmp_path / "x", 10**6, quiet)
    assert server.asked[-2:] == ["moved/x bytes=2000-", "x bytes=2000-"]
    assert server.sent == 5000


@pytest.mark.parametrize(
    "notes", ["{", '{"version": 1, "bytes": null}', '{"version": "1", "bytes": "7"}', "[" * 99_999]
)
def test_damaged_notes_are_named_with_what_to_do(notes, server, tmp_path):
    server.files["x"] = b"x" * 100
    (tmp_path / "x.part").write_bytes(b"x" * 10)
    (tmp_path / "x.part.json").write_text(notes)
    with pytest.raises(ValueError, match=r"x\.part\.json.*delete it, and the file is fetched anew"):
        download(f"{server.url}/x", tmp_path / "x", 10**6, quiet)
    (tmp_path / "x.part.json").unlink()
    download(f"{server.url}/x", tmp_path / "x", 10**6, quiet)
    assert (tmp_path / "x").read_bytes() == server.files["x"]
