"""Globs for the ways in which the price data says which names of models it means."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genai_prices.types import MatchLogic

# What a name must not contain. A glob cannot say it; the names that it keeps out have entries of their own, with more
# literal characters, and so win by themselves (S15).
_EXCLUSION = re.compile(r"\^\(\?!.*\)$")
_DIGITS = "0123456789"

# One piece of the regular expressions understood here: an escaped character, digits so many times, one of a set.
_PIECE = re.compile(
    r"(?P<digits>\\d)(?:\{(?P<count>\d+)\})?|\[(?P<set>[^\]\\^-]+|-[^\]\\^-]+|[^\]\\^-]+-)\]"
    r"|\\(?P<escaped>[^\w])|(?P<plain>[\w/@:~ -])"
)


def globs_of(match: "MatchLogic") -> tuple[list[str], list[str]]:
    r"""Return the globs, in lower case, that together match what a clause matches, and what could not be said so.

    A date in a regular expression (`\d{8}`, `\d{4}-\d{2}-\d{2}`) becomes one of this century (`20??????`): names with
    words of that length, such as `-thinking`, stay out.
    """
    globs: list[str] = []
    problems: list[str] = []
    for kind, value in _alternatives(match):
        if kind == "regex":
            found = _globs_of_regex(value)
            if found is None:
                problems.append(value)
            globs += found or []
        elif "*" in value or "?" in value or not value:
            problems.append(f"{kind} {value!r}")
        else:
            globs.append(_FORMS[kind].format(value.lower()))
    return _without_covered(globs), problems


_FORMS = {"equals": "{}", "starts_with": "{}*", "ends_with": "*{}", "contains": "*{}*"}


def _alternatives(match: "MatchLogic") -> Iterator[tuple[str, str]]:
    """Yield the kinds and values of the clauses of which one must hold."""
    inner: Sequence[MatchLogic] | None = getattr(match, "or_", None)
    if inner is not None:
        for clause in inner:
            yield from _alternatives(clause)
        return
    both: Sequence[MatchLogic] | None = getattr(match, "and_", None)
    if both is not None:
        said = [each for clause in both for each in _alternatives(clause)]
        wanted = [each for each in said if not (each[0] == "regex" and _EXCLUSION.fullmatch(each[1]))]
        if len(wanted) == 1:
            yield wanted[0]
        else:
            yield "regex", " and ".join(f"{kind} {value}" for kind, value in said)
        return
    for kind in ("equals", "starts_with", "ends_with", "contains", "regex"):
        value = getattr(match, kind, None)
        if value is not None:
            yield kind, value


def _globs_of_regex(expression: str) -> list[str] | None:
    """Return globs for an anchored expression of literals, digits and sets, or None for any other."""
    if not expression.startswith("^"):
        return None
    closed = expression.endswith("$")
    body = expression[1 : len(expression) - closed]
    globs = [""]
    position = 0
    while position < len(body):
        piece = _PIECE.match(body, position)
        if piece is None:
            return None
        position = piece.end()
        globs = [glob + choice for glob in globs for choice in _choices(piece, body[position:])]
    return [glob.lower() + ("" if closed else "*") for glob in globs]


def _choices(piece: re.Match[str], rest: str) -> Iterable[str]:
    if piece["digits"]:
        count = int(piece["count"] or 1)
        if count == 1:
            return _DIGITS
        dated = count == 8 or (count == 4 and rest.startswith(r"-\d{2}-\d{2}"))
        return ["20" + "?" * (count - 2) if dated else "?" * count]
    if piece["set"]:
        return piece["set"]
    return [piece["escaped"] or piece["plain"]]


def _without_covered(globs: Sequence[str]) -> list[str]:
    """Return the globs in their order, each once, without literal ones that a prefix glob among them matches too."""
    prefixes = tuple(
        glob[:-1] for glob in globs if glob.endswith("*") and "*" not in glob[:-1] and "?" not in glob
    )
    kept = [
        glob for glob in dict.fromkeys(globs) if "*" in glob or "?" in glob or not glob.startswith(prefixes)
    ]
    return kept if prefixes else list(dict.fromkeys(globs))
