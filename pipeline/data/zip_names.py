"""Names of zip entries as people meant them.

Only flagged entries say that their name is UTF-8. Others are in whatever the packing system used: UTF-8 all the same
(macOS), a DOS code page (Windows' Explorer), the system's own in Japan and China. What a name's bytes mean is guessed
from what readings of them look like: script, case, neighbours. All names of the archive together decide between
readings that look alike. Where they don't, nothing is guessed.
"""

import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable

LATIN = ("cp437", "cp850", "cp1252")
ENCODINGS = (*LATIN, "cp932", "gbk")
_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075
"""the extra field in which Info-ZIP and WinRAR put the name in UTF-8; APPNOTE.TXT 4.6.9"""


class Undecodable(ValueError):
    """A name of which no reading, or more than one, looks like one."""


def names(entries: Iterable[zipfile.ZipInfo]) -> tuple[list[str | Undecodable], dict[str, str]]:
    """The entries' paths in order, with / between the parts, or why one cannot be told; encodings that were guessed,
    each with one of the names read by it.

    A file whose own name cannot be told is called by its bytes: it is the folders' names that something is made of.
    entries: of a ZipFile that was opened without metadata_encoding, for zipfile to have read unflagged names as cp437
    """
    known = [_stated(entry) for entry in entries]
    chosen = _chosen(
        {part for raw in known if isinstance(raw, bytes) for part in raw.split(b"/") if not part.isascii()}
    )
    found: list[str | Undecodable] = []
    examples: dict[str, str] = {}
    for raw in known:
        if isinstance(raw, str):
            found.append(raw.replace("\\", "/"))
            continue
        *above, last = raw.split(b"/")
        readings = [chosen.get(part) or (part.decode("ascii"), "") for part in (*above, last)]
        if isinstance(readings[-1], Undecodable) and b"\\" not in last:
            readings[-1] = (ascii(last)[2:-1].replace("\\", "_"), "")
        told = [reading for reading in readings if not isinstance(reading, Undecodable)]
        if len(told) < len(readings):
            found.append(next(reading for reading in readings if isinstance(reading, Undecodable)))
            continue
        # after the decoding: half of a Japanese character can be the byte of a backslash
        found.append("/".join(text for text, _ in told).replace("\\", "/"))
        for text, encoding in told:
            if encoding:
                examples.setdefault(encoding, text)
    return found, examples


def _stated(entry: zipfile.ZipInfo) -> str | bytes:
    """The name, or its bytes where the archive does not say what they are."""
    if entry.flag_bits & _UTF8_FLAG:
        return entry.filename
    raw = entry.orig_filename.split("\0")[0].encode("cp437")
    extra = entry.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and len(content) > 5 and struct.unpack_from("<I", content, 1)[0] == zlib.crc32(raw):
            return content[5:].decode("utf-8", errors="replace")
    return raw


def _chosen(parts: set[bytes]) -> dict[bytes, tuple[str, str] | Undecodable]:
    """What each part of the archive's paths is, and the encoding if it was guessed."""
    utf8 = {part: text for part in parts if (text := _utf8(part)) is not None}
    sure = {part for part, text in utf8.items() if not _is_doubtful(text)}
    if len(utf8) == len(parts) and sure:
        sure = parts  # all of the archive is in UTF-8
    scores = {part: _readings(part) for part in parts - sure}
    fitting = {
        encoding: sum(readings[encoding][1] for readings in scores.values() if encoding in readings)
        for encoding in ENCODINGS
    }
    chosen: dict[bytes, tuple[str, str] | Undecodable] = {part: (utf8[part], "") for part in sure}
    for part, readings in scores.items():
        one = chosen[part] = _choose(part, readings, fitting)
        if part in utf8 and isinstance(one, Undecodable):
            chosen[part] = (utf8[part], "")
        elif part in utf8 and len(utf8) == len(parts) and not isinstance(one, Undecodable):
            chosen[part] = Undecodable(f"{part!a} may be {utf8[part]} (UTF-8) or {one[0]} ({one[1]})")
    return chosen


def _utf8(part: bytes) -> str | None:
    try:
        return part.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _is_doubtful(text: str) -> bool:
    """Whether what reads as UTF-8 may be so by chance, as one or two Chinese characters can: 猫 in GBK is è."""
    wide = [character for character in text if not character.isascii()]
    alone = not any(character.isascii() and character.isalpha() for character in text)
    return alone and len(wide) < 3 and max(wide) < "\u0800"


def _readings(part: bytes) -> dict[str, tuple[str, float]]:
    """Encoding -> what it makes of the bytes, and how much that looks like a name: at most 1.5, doubtful below 0."""
    found = {}
    for encoding in ENCODINGS:
        try:
            text = part.decode(encoding)
        except UnicodeDecodeError:
            continue
        marks = [_mark(text, place, encoding) for place, character in enumerate(text) if ord(character) > 127]
        if marks and min(marks) > -9:
            found[encoding] = (text, sum(marks) / len(marks))
    return found


def _mark(text: str, place: int, encoding: str) -> float:
    """How well one character fits where it stands; -9: not at all."""
    character, before, after = text[place], text[place - 1 : place], text[place + 1 : place + 2]
    beside_ascii = any(neighbour.isascii() and neighbour.isalpha() for neighbour in (before, after) if neighbour)
    name = unicodedata.name(character, "")
    if encoding in LATIN:
        if not (name.startswith("LATIN") and character.isalpha()):
            return -9
        inside = before.isalpha() and character.isupper() and after.islower()
        if inside or (before.islower() and character.isupper()) or (character.islower() and after.isupper()):
            return -1  # no word has a capital inside
        return 1.0 if beside_ascii else -0.5 if before + after else 0.0
    if name.startswith(("HIRAGANA", "KATAKANA")):
        return -1 if beside_ascii else 1.5
    if name.startswith("CJK UNIFIED"):
        return -1 if beside_ascii or (encoding == "gbk" and not _is_gb2312(character)) else 1.0
    return -1 if name.startswith(("HALFWIDTH", "FULLWIDTH", "IDEOGRAPHIC")) else -9


def _is_gb2312(character: str) -> bool:
    """Whether a character is of the 6,763 that GBK was made larger from; the others are rare in names."""
    try:
        return bool(character.encode("gb2312"))
    except UnicodeEncodeError:
        return False


def _choose(
    part: bytes, readings: dict[str, tuple[str, float]], fitting: dict[str, float]
) -> tuple[str, str] | Undecodable:
    """The reading that looks best and its encoding; of equal ones that of the encoding which fits the archive best."""
    shown = f"{part!a}"
    likely = {encoding: reading for encoding, reading in readings.items() if reading[1] >= 0}
    if not likely:
        return Undecodable(f"{shown} is in none of UTF-8, {', '.join(ENCODINGS)}")
    best = max(mark for _, mark in likely.values())
    equal = {encoding: text for encoding, (text, mark) in likely.items() if mark == best}
    most = max(fitting[encoding] for encoding in equal)
    fittest = {text: encoding for encoding, text in reversed(equal.items()) if fitting[encoding] == most}
    if len(fittest) > 1:
        both = " or ".join(f"{text} ({encoding})" for text, encoding in fittest.items())
        return Undecodable(f"{shown} may be {both}")
    return next(iter(fittest.items()))
