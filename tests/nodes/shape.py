"""What every node's test asks of its class."""

from __future__ import annotations

from typing import Any

from lowtide.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS


def node(name: str) -> Any:
    """The class behind a node id."""
    return NODE_CLASS_MAPPINGS[name]


def inputs(name: str, kind: str = "required") -> dict[str, Any]:
    """Input name -> type, or list of choices."""
    return {key: value[0] for key, value in node(name).INPUT_TYPES().get(kind, {}).items()}


def check_conventions(name: str, title: str) -> None:
    """Category, title, texts and a method of that name, whose arguments are the inputs."""
    found = node(name)
    assert found.CATEGORY == "Lowtide"
    assert NODE_DISPLAY_NAME_MAPPINGS[name] == title
    assert found.DESCRIPTION.endswith(".")
    assert len(found.RETURN_TYPES) == len(found.RETURN_NAMES) == len(found.OUTPUT_TOOLTIPS)
    assert all(found.OUTPUT_TOOLTIPS)
    groups = found.INPUT_TYPES()
    assert set(groups) <= {"required", "optional", "hidden"}
    for kind in ("required", "optional"):
        for key, value in groups.get(kind, {}).items():
            assert value[1]["tooltip"].endswith("."), key
    names = [key for kind in ("required", "optional", "hidden") for key in groups.get(kind, {})]
    code = getattr(found, found.FUNCTION).__code__
    assert list(code.co_varnames[1 : code.co_argcount]) == names
