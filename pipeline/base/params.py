"""Reading params.yaml: its sections are the embedded profile, and `profiles` hold what the others do otherwise."""

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.base.errors import PipelineError, did_you_mean
from pipeline.base.messages import one_line
from pipeline.base.profile import Params

PARAMS = Path("params.yaml")
TOP_LEVEL = ("profile", "seed", "profiles")
LIKE = "like"  # in a profile: the profile that it builds on
SECTIONS = tuple(field.alias or name for name, field in Params.model_fields.items() if name not in TOP_LEVEL)
Document = Mapping[str, Any]  # params.yaml as it is written
FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")


def load_params(path: Path = PARAMS, *, profile: str | None = None, seed: int | None = None) -> Params:
    """Read `path`, params.yaml or what the stage configure made of it, and check the profile that it names.

    Args:
        profile, seed: instead of those that the file names.

    Raises:
        PipelineError: the file is missing or no YAML, the profile does not exist, or a value is missing, unknown,
            of the wrong type or out of range. The message names the file and the key.
    """
    document = read_document(path)
    if profile is not None:
        document = {**document, "profile": profile}
    if seed is not None:
        document = {**document, "seed": seed}
    if "profiles" in document:
        sections = resolve(document, path)
    else:  # resolved before
        _check_keys(document, (*TOP_LEVEL, *SECTIONS), path)
        sections = document
    try:
        return Params.model_validate(sections)
    except ValidationError as error:
        key, message = one_line(error, Params)
        place = f"{place_of(document, key)}: " if key else ""
        raise PipelineError(f"{path}: {place}{message}") from error


def read_document(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping.

    Raises:
        PipelineError: it is missing, cannot be read, is no YAML or no mapping, or has a key twice.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        where = "run from the repository root" if path.parent == Path() else "run `dvc repro configure`"
        raise PipelineError(f"{path}: not found; {where}") from None
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: bytes, dates or numbers that are none
        raise PipelineError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise PipelineError(f"{path}: expected a mapping with profile, seed, sections and profiles at the top")
    return document


def resolve(document: Document, path: Path = PARAMS) -> dict[str, Any]:
    """The sections of the profile that `document` names, with what it does otherwise, and `profile` and `seed`.

    A profile replaces key by key within a section, what the profile that it is `like` makes of it, else what the top of
    the file says; a section of another `source` whole; and a variant that it sets to null is left out.

    Raises:
        PipelineError: there is no such profile, or one of its sections or a top-level key is unknown.
    """
    _check_keys(document, (*TOP_LEVEL, *SECTIONS), path)
    name, profiles = document.get("profile"), document["profiles"]
    if not isinstance(profiles, dict) or not isinstance(name, str) or name not in profiles:
        known = list(map(str, profiles)) if isinstance(profiles, dict) else []
        raise PipelineError(f"{path}: profile: {name!r} is not under profiles; {did_you_mean(str(name), known)}")
    sections = {key: value for key, value in document.items() if key != "profiles"}
    for profile in reversed(lineage(document)):
        chosen = profiles[profile] if profiles[profile] is not None else {}
        if not isinstance(chosen, dict):
            raise PipelineError(f"{path}: profiles.{profile}: expected a mapping of sections, got {chosen!r}")
        _check_keys(chosen, (LIKE, *SECTIONS), path, f"profiles.{profile}: ")
        _check_like(profile, chosen, profiles, path)
        for section, changed in chosen.items():
            if section != LIKE:
                sections[section] = _merged(sections.get(section), changed)
    if isinstance(sections.get("variants"), dict):
        sections["variants"] = {key: value for key, value in sections["variants"].items() if value is not None}
    return sections


def lineage(document: Document) -> list[str]:
    """The profile that `document` names, the one that it is `like`, and so on; each once."""
    profiles, names = document.get("profiles") or {}, [document["profile"]]
    while True:
        chosen = profiles.get(names[-1])
        like = chosen.get(LIKE) if isinstance(chosen, dict) else None
        if not isinstance(like, str) or like not in profiles or like in names:
            return names
        names.append(like)


def place_of(document: Document, key: str) -> str:
    """Where a user changes `key` of the resolved parameters: under the profile if that, or one that it builds on, says
    it, else at the top.
    """
    parts = key.split(".")
    for name in lineage(document):
        changed = ((document.get("profiles") or {}).get(name) or {}).get(parts[0])
        if isinstance(changed, dict) and (len(parts) == 1 or parts[1] in changed or "source" in changed):
            return f"profiles.{name}.{key}"
    return key


def _check_like(name: str, chosen: Mapping[str, Any], profiles: Mapping[str, Any], path: Path) -> None:
    like = chosen.get(LIKE)
    if LIKE in chosen and (not isinstance(like, str) or like not in profiles):
        hint = did_you_mean(str(like), [str(known) for known in profiles if known != name])
        raise PipelineError(f"{path}: profiles.{name}.like: {like!r} is not under profiles; {hint}")
    if like is not None and name in lineage({"profile": like, "profiles": profiles}):
        raise PipelineError(f"{path}: profiles.{name}.like: {like} builds on {name} itself; name another profile")


def _merged(before: Any, changed: Any) -> Any:
    if not isinstance(before, dict) or not isinstance(changed, dict):
        return changed
    same_source = changed.get("source", before.get("source")) == before.get("source")
    return {**before, **changed} if same_source else changed


def _check_keys(found: Mapping[Any, Any], known: tuple[str, ...], path: Path, place: str = "") -> None:
    for key in found:
        if key not in known:
            raise PipelineError(f"{path}: {place}unknown key {key!r}; {did_you_mean(str(key), known)}")


class _Loader(yaml.CSafeLoader):
    """PyYAML with the numbers of YAML 1.2, which DVC writes (1.0e-5 as `1e-05`), and without keys given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As PyYAML does, which would let the last of equal keys win."""
        seen: set[Any] = set()
        for key_node in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
