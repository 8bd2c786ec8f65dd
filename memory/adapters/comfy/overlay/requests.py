"""What a browser may ask for over Lowtide's routes: the form of each request, and its limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ....override import MOST_GB

NODES = 5000
"""Most nodes of a graph."""

_Id = Annotated[str, Field(min_length=1, max_length=64)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]


class Request(BaseModel):
    """Nothing but the fields it names, each of exactly its type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Free(Request):
    """``keep``: names of models that stay."""

    target: Literal["vram", "ram", "both"]
    keep: Annotated[list[_Name], Field(max_length=64)] = []


class Unload(Request):
    """One model, by the id the state gives it."""

    id: _Id


class Next(Request):
    """What stands in for the selector's widgets in the next runs; null leaves them their say."""

    level: Literal["none", "balanced", "aggressive", "ultra"] | None
    budget_gb: Annotated[float, Field(gt=0, le=MOST_GB, allow_inf_nan=False)] | None


class Fit(Request):
    """A graph in API format: node id -> class and inputs."""

    prompt: Annotated[dict[str, Any], Field(max_length=NODES)]


class Answer(Request):
    """To a question of a rescue."""

    question: _Id
    yes: bool


class Nothing(Request):
    """An empty object."""


class Malformed(ValueError):
    """The body is not what the route takes; the message says where and why."""


def parse(kind: type[Request], body: bytes) -> Any:
    """A request of that kind.

    Raises:
        Malformed: the body is no JSON, or of another form. The message repeats nothing of it but
            the names of this kind's own fields.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        fields = set(kind.model_fields)
        said = []
        for found in error.errors(include_url=False, include_context=False, include_input=False)[
            :5
        ]:
            place = str(found["loc"][0]) if found["loc"] else ""
            unknown = found["type"] == "extra_forbidden"
            reason = f"there is no such field; known: {', '.join(sorted(fields)) or 'none'}"
            text = reason if unknown else found["msg"]
            said.append(f"`{place}`: {text}" if place in fields else text)
        raise Malformed("; ".join(dict.fromkeys(said))) from None
