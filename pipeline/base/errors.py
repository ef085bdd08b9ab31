"""Failures that the user can act on, and what every message to the user has in common."""

import difflib
import re
import sys
from collections.abc import Iterable, Sequence

MOST_NAMED = 10  # files, classes or problems in one message
LONGEST_QUOTED = 200  # characters, of what others say


class PipelineError(Exception):
    """A failure described in one line: what is wrong, where, and what to do.

    Stages and commands print the message without a traceback and exit with code 1.
    """


def warn(message: str) -> None:
    """Print one line that begins with `warning:` to standard error."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def raise_together(problems: Sequence[str], what: str) -> None:
    """Raise all `problems` as one error in one line; the only one as it is, of more the number and the first ten.

    Args:
        what: has the problems, in the plural, such as "bad files".

    Raises:
        PipelineError: there is a problem.
    """
    if not problems:
        return
    if len(problems) == 1:
        raise PipelineError(problems[0])
    raise PipelineError(f"{len(problems)} {what}: {first_of(problems, ' | ')}")


def first_of(names: Sequence[str], separator: str = ", ") -> str:
    """The first ten of some names for a message, and how many more there are."""
    rest = [f"and {len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    return separator.join([*names[:MOST_NAMED], *rest])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a name that does not exist: the most similar known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"


def printable(text: str, length: int = LONGEST_QUOTED) -> str:
    """What a server, a library or a file says, as part of a message: one line without control characters or escape
    sequences of a terminal, of at most `length` characters.
    """
    plain = re.sub(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)", "", text)
    line = " ".join("".join(character if character.isprintable() else " " for character in plain).split())
    return line if len(line) <= length else f"{line[: length - 3]}..."
