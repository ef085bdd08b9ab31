"""Class lists as other programs write them, and what they say of masks: by value, by colour or by name.

An entry is a name (`cat`), a value and a name (`1:cat`, `255=cat`, `cat=1`), or a name and a colour (`cat:128,0,0::` as
in CVAT's labelmap.txt, `cat,128,0,0`, `128 0 0 cat`). Background and void may be among them in any spelling.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.base.errors import PipelineError
from pipeline.data import voc
from pipeline.data.images import colour

COLOUR = r"(?P<r>\d{1,3})\s*[,\s]\s*(?P<g>\d{1,3})\s*[,\s]\s*(?P<b>\d{1,3})"
NAME_AND_COLOUR = re.compile(rf"(?P<name>.*\S)\s*[:=,\s]\s*{COLOUR}\s*(?::.*)?")
COLOUR_AND_NAME = re.compile(rf"{COLOUR}\s*[:=,\s]\s*(?P<name>.*\S)")
VALUE_AND_NAME = re.compile(r"(?P<value>\d+)(?:\s*[:=,;)]\s*|\.?\s+)(?P<name>.*\S)")
NAME_AND_VALUE = re.compile(r"(?P<name>.*\S)\s*[:=]\s*(?P<value>\d+)")
HEADER = re.compile(r"(name|label|class)\w*\s*[,;\s]\s*r(ed)?\s*[,;\s]\s*g(reen)?\s*[,;\s]\s*b(lue)?", re.IGNORECASE)
RESERVED = {"background": 0, "void": voc.IGNORE_INDEX}
LABELME_VOID = "__ignore__"  # the first of labelme's labels, before value 0

Colour = tuple[int, ...]


class ClassList(NamedTuple):
    """The classes of masks to be, and what stands for them in masks as they are."""

    names: tuple[str, ...]  # of the values 1 to C to be
    kind: Literal["names", "values", "colours"]
    values: dict[int, int]  # as it is, to be; empty of a list of colours
    colours: dict[Colour, int]  # (R, G, B) as it is, to the value to be; VOC's colours where the list has none
    labels: dict[str, int]  # name as listed, to the value to be

    def value_of(self, label: str) -> int | None:
        """The value of a label, None of an unknown one."""
        meaning = voc.reserved_meaning(label)
        return self.labels.get(label, None if meaning is None else RESERVED[meaning])


class _Entry(NamedTuple):
    name: str
    key: int | Colour | None


def read_class_list(argument: str) -> ClassList:
    """The list in the file `argument`, or the names or VALUE=NAME in `argument` itself, with commas between them.

    Raises:
        PipelineError: the file is missing or no text, an entry cannot be read, or the entries are of several kinds.
    """
    path = Path(argument)
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise PipelineError(f"{path}: not UTF-8 text ({error.reason}); save the class list as UTF-8") from None
        return parse_class_list(lines, str(path))
    if "/" in argument or path.suffix in (".txt", ".csv"):
        raise PipelineError(f"{path}: missing; --classes is the class list of the masks")
    return parse_class_list(argument.split(","), "--classes")


def parse_class_list(lines: Iterable[str], source: str) -> ClassList:
    """The list of all entries in `lines`; empty lines, comments and a head do not count.

    Args:
        source: of the lines, for messages.

    Raises:
        PipelineError: an entry cannot be read, or the entries are of several kinds.
    """
    texts = [text for line in lines if (text := line.strip().strip("\"',")) and not text.startswith("#")]
    entries = [_entry(text, source) for text in texts if not HEADER.fullmatch(text)]
    kinds = {_kind(entry) for entry in entries}
    if not entries or len(kinds) > 1:
        found = f"entries of several kinds ({', '.join(sorted(kinds))})" if kinds else "no entry"
        raise PipelineError(f"{source}: {found}; write one kind: NAME, VALUE=NAME or NAME:R,G,B")
    (kind,) = kinds
    if kind == "colours":
        return _by_colours(entries, source)
    return _by_values(_numbered(entries, source) if kind == "names" else entries, source, named=kind == "names")


def _entry(text: str, source: str) -> _Entry:
    for pattern in (NAME_AND_COLOUR, COLOUR_AND_NAME):
        if (match := pattern.fullmatch(text)) is not None:
            channels = tuple(int(match[channel]) for channel in "rgb")
            if max(channels) > 255:
                raise PipelineError(f"{source}: {text!r} has a colour above 255")
            return _Entry(match["name"], channels)
    match = VALUE_AND_NAME.fullmatch(text) or NAME_AND_VALUE.fullmatch(text)
    return _Entry(text, None) if match is None else _Entry(match["name"], int(match["value"]))


def class_list_of_labels(labels: Iterable[str], source: str) -> ClassList:
    """The list of the classes among `labels`, which need not name background or void.

    Raises:
        PipelineError: there is none, or one cannot stand in classes.txt.
    """
    names = [label for label in labels if voc.reserved_meaning(label) is None]
    return _by_values([_Entry(name, value) for value, name in enumerate(names, start=1)], source, named=True)


def _kind(entry: _Entry) -> Literal["names", "values", "colours"]:
    if entry.key is None:
        return "names"
    return "values" if isinstance(entry.key, int) else "colours"


def _numbered(entries: Sequence[_Entry], source: str) -> list[_Entry]:
    """Names with their values: the first is 1, or 0 if it is background or void; labelme's `__ignore__` has none."""
    names = [entry.name for entry in entries]
    if len(names) > 1 and names[0] == LABELME_VOID:
        names = names[1:]
    first = 0 if voc.reserved_meaning(names[0]) is not None else 1
    if "background" in map(voc.reserved_meaning, names[1:]):
        raise PipelineError(f"{source}: background is not the first name: are values from 0 or 1? write VALUE=NAME")
    return [_Entry(name, value) for value, name in enumerate(names, start=first)]


def _by_values(entries: Sequence[_Entry], source: str, *, named: bool) -> ClassList:
    entries = sorted(entries, key=lambda entry: entry.key if isinstance(entry.key, int) else 0)
    names, labels = _targets(entries, source)
    values = {entry.key: labels[entry.name] for entry in entries if isinstance(entry.key, int)}
    if len(values) < len(entries):
        raise PipelineError(f"{source}: two names have the same value")
    values = {0: 0, voc.IGNORE_INDEX: voc.IGNORE_INDEX} | values
    palette = voc.voc_palette()
    colours = {colour(palette, value): target for value, target in values.items() if value <= voc.IGNORE_INDEX}
    return ClassList(names, "names" if named else "values", values, colours, labels)


def _by_colours(entries: Sequence[_Entry], source: str) -> ClassList:
    names, labels = _targets(entries, source)
    palette = voc.voc_palette()
    listed = {entry.key: labels[entry.name] for entry in entries if isinstance(entry.key, tuple)}
    if len(listed) < len(entries):
        raise PipelineError(f"{source}: two names have the same colour")
    usual = {colour(palette, value): value for value in (0, voc.IGNORE_INDEX)}
    return ClassList(names, "colours", {}, usual | listed, labels)


def _targets(entries: Iterable[_Entry], source: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names of the classes to be, and the value to be of each name as listed; blanks in a name become `_`."""
    values: dict[str, int] = {}
    labels: dict[str, int] = {}
    for name in (entry.name for entry in entries):
        if (meaning := voc.reserved_meaning(name)) is not None:
            labels[name] = RESERVED[meaning]
            continue
        written = "_".join(name.split())
        if (kind := voc.other_kind(written)) is not None:
            raise PipelineError(f"{source}: {name!r} looks like {kind} and cannot stand in classes.txt; rename it")
        labels[name] = values.setdefault(written, len(values) + 1)
    if not 0 < len(values) < voc.IGNORE_INDEX:
        raise PipelineError(f"{source}: {len(values)} classes; a mask holds 1 to {voc.IGNORE_INDEX - 1}")
    return tuple(values), labels
