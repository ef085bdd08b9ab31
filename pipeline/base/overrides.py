"""Which changes of params.yaml change nothing that the chosen profile reads."""

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from pipeline.base.params import Document, lineage, place_of, resolve

_ABSENT = object()


def unused_changes(before: Document, after: Document) -> list[str]:
    """The dotted keys that differ between two documents although the parameters read from `after` do not need them.

    A value at the top of params.yaml that the chosen profile overrides is one, and a value of another profile. Of a
    profile in which several differ, its own key stands for them.
    """
    old, new = _leaves(before), _leaves(after)
    changed = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    resolved = resolve(after)
    unused = [key for key in changed if resolve(_with(after, key, old.get(key, _ABSENT))) == resolved]
    others = Counter(key[:2] for key in unused if key[0] == "profiles" and key[1:2] and key[1] not in lineage(after))
    return list(dict.fromkeys(".".join(key[:2] if others[key[:2]] > 1 else key) for key in unused))


def explained(key: str, document: Document) -> str:
    """Why a change of `key` is unused, and what to change instead, as half a sentence."""
    name = document["profile"]
    if key.startswith("profiles."):
        _, profile, inner = (*key.split(".", 2), "")[:3]
        if profile not in lineage(document) or not inner:
            return f"the chosen profile is {name}"
        key = inner
    return f"profile {name} says otherwise; change {place_of(document, key)}"


def _leaves(document: Document) -> dict[tuple[str, ...], Any]:
    leaves: dict[tuple[str, ...], Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            leaves |= {(str(key), *rest): leaf for rest, leaf in _leaves(value).items()}
        else:
            leaves[str(key),] = value
    return leaves


def _with(document: Document, key: tuple[str, ...], value: Any) -> Document:
    changed = section = deepcopy(dict(document))
    for part in key[:-1]:
        inner = section.get(part)
        section[part] = inner = inner if isinstance(inner, dict) else {}
        section = inner
    if value is _ABSENT:
        section.pop(key[-1], None)
    else:
        section[key[-1]] = value
    return changed
