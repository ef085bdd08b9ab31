"""Passwords, tokens and signatures are taken out of all that leaves a process: lines, log records, MLflow, Prefect.

`without_secrets` cleans a text. `hide_secrets` puts it where lines leave: standard output, standard error, and every
record of `logging`; each program calls it before it does anything else. What goes to MLflow or Prefect in another way
than as a line is cleaned where it is handed over.

`python -m pipeline.base.secrets MODULE ...` runs a Python program of others, such as prefect, in the same way.
"""

import base64
import io
import logging
import os
import re
import runpy
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TextIO, TypeVar
from urllib.parse import quote, quote_plus, unquote, unquote_plus

T = TypeVar("T")

MASK = "***"
SHORTEST = 6  # characters of a secret that is masked wherever it stands; a shorter one would mask words of any text
# Quotes do not end an address, since passwords may have them; but a double quote always ends a text in JSON.
ADDRESS = re.compile(r"[^\s\"<>`]+")
ENCODED_ADDRESS = re.compile(r"[^\s\"<>`&]+")
SCHEME, AT = re.compile(r"\w://(?!/)"), re.compile("@")  # sqlite:///a@b has no host, so no password
# As in a parameter of another address, encoded once or more often.
ENCODED_SCHEME, ENCODED_AT = re.compile(r"\w%(?:25)*3A(?:%(?:25)*2F){2}", re.IGNORECASE), re.compile(r"%(?:25)*40")
SETTING = re.compile(r"(?<![\w.-])([\w.-]+)(?:=|%(?:25)*3D)", re.IGNORECASE)
VALUE = re.compile(r"(?:(?!%(?:25)*26)[^\s\"<>`&])+")
SECRET_NAME = re.compile(
    r"(?:^|[_.-]|^(?:25)*(?:26|3B|3F))"  # %26, %3B and %3F are the separators & ; ?
    r"(?:token|secret|password|passwd|passphrase|pwd|signature|credential|auth_?string|sig|"
    r"(?:api|access|secret|account)_?key)$",
    re.IGNORECASE,
)
HEADER = re.compile(r"(authorization['\"]?\s*[:=]\s*['\"]?\w+\s+)[^\s'\"]+", re.IGNORECASE)
SECRET_VARIABLE = re.compile(rb"(?:^|_)(?:PASSWORD|TOKEN|SECRET|SECRET_KEY|API_KEY|ACCESS_KEY|AUTH_STRING)$")


def without_secrets(text: str) -> str:
    """`text` without user and password of any address, and with `MASK` for other secrets, percent-encoded or not.

    Secrets are the values of parameters such as ?token= and X-Amz-Signature=, and what the environment holds: the
    passwords of addresses and the values of variables such as MLFLOW_TRACKING_PASSWORD, wherever they stand. A
    password without `SHORTEST` characters is recognised in an address alone.
    """
    text = ADDRESS.sub(lambda found: _without_user(found[0], SCHEME, AT), text)
    if "%" in text:
        text = ENCODED_ADDRESS.sub(lambda found: _without_user(found[0], ENCODED_SCHEME, ENCODED_AT), text)
    text = _without_settings(HEADER.sub(rf"\1{MASK}", text))
    if (known := _known_secrets(tuple(_secret_settings()))) is not None:
        text = known.sub(MASK, text)
    return text


def cleaned(value: T) -> T:
    """A value as JSON has it, its texts without secrets; keys of mappings stay."""
    result: Any = value
    if isinstance(value, str):
        result = without_secrets(value)
    elif isinstance(value, Mapping):
        result = {key: cleaned(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        result = [cleaned(item) for item in value]
    return result  # type: ignore[no-any-return]


def cleaned_file(content: bytes) -> bytes:
    """The content of a file without secrets, if it is text in UTF-8; pictures and weights as they are."""
    try:
        return without_secrets(content.decode("utf-8")).encode("utf-8")
    except UnicodeDecodeError:
        return content


def hide_secrets() -> None:
    """From now on, nothing that this process prints or logs shows a secret; tracebacks are printed, too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _CleanStream):
            setattr(sys, name, _CleanStream(stream))
    if logging.getLogRecordFactory() is not _clean_record:
        logging.setLogRecordFactory(_clean_record)


class _CleanStream(io.TextIOBase):
    """A text stream that cleans what is written, text by text; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text; the number of its characters, as it was."""
        self._stream.write(without_secrets(text))
        return len(text)

    def writelines(self, lines: Iterable[Any]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what is written so far."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor of the stream."""
        return self._stream.fileno()

    def writable(self) -> bool:
        """It is for writing."""
        return True

    def close(self) -> None:
        """The stream stays open: whoever opened it closes it."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """How the stream treats characters that its encoding lacks."""
        return self._stream.errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _clean_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A log record whose message and traceback are cleaned before any handler sees them."""
    record = logging.LogRecord(*args, **kwargs)
    try:
        message = record.getMessage()
    except (TypeError, ValueError):  # message and arguments do not fit: logging itself says so
        return record
    if (shown := without_secrets(message)) != message:
        record.msg, record.args = shown, ()
    if record.exc_info and record.exc_info[1] is not None:
        # Formatters take a text that is there already.
        record.exc_text = without_secrets("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
    return record


def _without_user(address: str, scheme: re.Pattern[str], at: re.Pattern[str]) -> str:
    """Cut from the scheme up to the last @, since passwords are written with @ and / in them."""
    begin, ends = scheme.search(address), [found.end() for found in at.finditer(address)]
    if begin is None or not ends or ends[-1] < begin.end():
        return address
    return address[: begin.end()] + address[ends[-1] :]


def _without_settings(text: str) -> str:
    """Mask the values of NAME=VALUE with the name of a secret."""
    pieces, position = [], 0
    for begin, end in _secrets_set(text):
        pieces += [text[position:begin], MASK]
        position = end
    return "".join([*pieces, text[position:]])


def _secrets_set(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of NAME=VALUE with the name of a secret begin and end."""
    position = 0
    while (setting := SETTING.search(text, position)) is not None:
        position = setting.end()
        value = VALUE.match(text, position) if SECRET_NAME.search(setting[1]) else None
        if value is not None:
            position = value.end()
            yield value.span()


def _secret_settings() -> Iterator[tuple[bytes, bytes]]:
    """Variables of the environment that are or hold secrets, as far as their names and values tell."""
    for name, value in os.environb.items():  # decoding all of them, for each line, takes a millisecond
        if b"://" in value or SECRET_VARIABLE.search(name):
            yield name, value


@lru_cache(maxsize=8)
def _known_secrets(settings: tuple[tuple[bytes, bytes], ...]) -> re.Pattern[str] | None:
    """Matches every secret of the environment in any of its spellings, the longest first; None without one."""
    secrets: set[str] = set()
    for name, raw in settings:
        value = os.fsdecode(raw)
        if SECRET_VARIABLE.search(name):
            secrets.add(value)
        for user in re.findall(r"\w://(?!/)(\S*)@", value):
            name_of_user, colon, password = user.partition(":")
            secrets.add(password if colon else name_of_user)
            secrets.add(base64.b64encode(unquote(user).encode()).decode())  # as the header of a request has it
        secrets |= {value[begin:end] for begin, end in _secrets_set(value)}
    spellings = {spelling for secret in secrets for spelling in _spellings(secret) if len(spelling) >= SHORTEST}
    return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True)))) if spellings else None


def _spellings(secret: str) -> set[str]:
    """A secret as it is, decoded and encoded, and the parts that a library takes for host, port or path."""
    plain = {secret, unquote(secret), unquote_plus(secret)}
    encoded = {spell(text) for text in plain for spell in (quote, quote_plus, _quoted_whole)}
    parts = {part for text in plain for part in re.split(r"[/@:?#]", text)}
    return plain | encoded | parts | {repr(text)[1:-1] for text in plain}


def _quoted_whole(text: str) -> str:
    return quote(text, safe="")


if __name__ == "__main__":
    hide_secrets()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
