"""Every language says what English says; English says what the nodes and the web files say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lowtide import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from lowtide.memory import diffusers_session

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())
FILES = ("main", "settings", "commands", "nodeDefs")
SCRIPTS = sorted((ROOT / "web").rglob("*.js"))


def read(language: str, file: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / f"{file}.json").read_text(encoding="utf-8"))


def leaves(tree: Any, path: str = "") -> dict[str, str]:
    if not isinstance(tree, dict):
        return {path: tree}
    found: dict[str, str] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{path}.{key}" if path else key)
    return found


def test_there_are_four_languages() -> None:
    assert LANGUAGES == ["en", "es", "ja", "zh"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_the_keys_and_the_gaps_of_english(language: str, file: str) -> None:
    english, other = leaves(read("en", file)), leaves(read(language, file))
    assert set(other) == set(english)
    for key, text in other.items():
        assert text.strip(), key
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", english[key])), key
        if file != "main":  # vue-i18n reads these itself, and has a meaning for each of them
            assert not set("{}@|") & set(text), key


def test_english_says_what_the_nodes_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers_session, "folders", lambda: ["a"])
    told = read("en", "nodeDefs")
    assert set(told) == set(NODE_CLASS_MAPPINGS)
    for name, node in NODE_CLASS_MAPPINGS.items():
        types = node.INPUT_TYPES()
        inputs = {**types.get("required", {}), **types.get("optional", {})}
        assert told[name] == {
            "display_name": NODE_DISPLAY_NAME_MAPPINGS[name],
            "description": node.DESCRIPTION,
            "inputs": {key: {"tooltip": spec[1]["tooltip"]} for key, spec in inputs.items()},
            "outputs": {
                str(slot): {"tooltip": text} for slot, text in enumerate(node.OUTPUT_TOOLTIPS)
            },
        }


@pytest.mark.parametrize("name", sorted(NODE_CLASS_MAPPINGS))
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_node_has_its_help_page(
    language: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers_session, "folders", lambda: ["a"])
    page = (ROOT / "web" / "docs" / name / f"{language}.md").read_text(encoding="utf-8")
    if language == "en":
        assert page == (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith("# Lowtide")
    types = NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
    for key in {**types.get("required", {}), **types.get("optional", {})}:
        assert key in page, key


def _shape(page: str) -> list[str]:
    """What each line is: a heading, a table's row, an item of a list, text or nothing."""
    return [
        line[:2].strip() if line[:1] in "#|-" else line[:1] and "text" for line in page.split("\n")
    ]


@pytest.mark.parametrize("name", sorted(NODE_CLASS_MAPPINGS))
@pytest.mark.parametrize("language", [it for it in LANGUAGES if it != "en"])
def test_a_help_page_says_as_much_as_the_english_one(language: str, name: str) -> None:
    folder = ROOT / "web" / "docs" / name
    english, other = ((folder / f"{it}.md").read_text(encoding="utf-8") for it in ("en", language))
    assert _shape(other) == _shape(english)
    quoted = r"`[^`]+`"
    assert sorted(re.findall(quoted, other)) == sorted(re.findall(quoted, english))
    figures = r"\d+(?:\.\d+)?(?= ?(?:GB|MB|px|%))"
    assert sorted(re.findall(figures, other)) == sorted(re.findall(figures, english))
    # Other nodes are named as ComfyUI shows them in that language.
    shown = {node["display_name"] for node in read(language, "nodeDefs").values()}
    assert set(re.findall(r"\*\*(Lowtide[^*]+)\*\*", other)) <= shown


def test_every_text_of_the_web_side_is_there_and_used() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    texts = set(leaves(read("en", "main")["lowtide"]))
    asked = set(re.findall(r"""\bt\(["']([\w.]+)["']""", source))
    assert asked <= texts, asked - texts
    # Keys that are put together: their first or last part stands in the source.
    made = {f"{start}." for start in re.findall(r"\bt\(`([\w]+)\.\$\{", source)}
    ends = set(re.findall(r"\bt\(`\$\{\w+(?:\.id)?\}(\.\w+)`", source))
    unused = {
        key
        for key in texts - asked
        if not key.startswith(tuple(made)) and not key.endswith(tuple(ends))
    }
    assert unused == set()


def test_settings_and_commands_have_names() -> None:
    settings = (ROOT / "web" / "settings.js").read_text(encoding="utf-8")
    ids = re.findall(r'^export const \w+ = "(Lowtide\.[\w.]+)";', settings, re.MULTILINE)
    assert {it.replace(".", "_") for it in ids} == set(read("en", "settings"))
    entry = (ROOT / "web" / "lowtide.js").read_text(encoding="utf-8")
    commands = dict(re.findall(r'command\("(\w+)", "([^"]+)"', entry))
    told = {key: text["label"] for key, text in read("en", "commands").items()}
    assert told == {f"Lowtide_{name}": label for name, label in commands.items()}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_web_side_keeps_its_rules(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "://"):
        if word == "://" and path.name == "lowtide.js":
            continue  # the project's own address, on the page "about"
        assert word not in source, word
    for imported in re.findall(r'from "([^"]+)"', source):
        host = imported.startswith(("../../scripts/", "../scripts/"))
        assert imported.startswith(("./", "../")), imported
        if host:
            assert path.name == "lowtide.js", "only this one registers anything"
