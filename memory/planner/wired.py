"""What a graph's sampler hangs on, found by following its links: loaders, sizes, Lowtide's nodes.

Only what is read here exactly is judged; the reason why a graph is not is a sentence for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from .api_graph import Graph, links, well_formed
from .predict import DECODE, DENOISE, ENCODE
from .work import Work

SAMPLER = "KSampler"
JUDGED = {SAMPLER: DENOISE, "CLIPTextEncode": ENCODE, "VAEDecode": DECODE}
"""Classes of nodes that can be predicted, and their stages."""
OPTIMIZE, SELECTOR = "LowtideOptimizePipeline", "LowtideMemoryLevelSelector"
SETTINGS = "LowtideMemorySettings"

_LATENTS = ("EmptyLatentImage", "EmptySD3LatentImage")
_CONDITIONS = ("positive", "negative", "conditioning", "conditioning_1", "conditioning_2")
_TEXT = "CLIPTextEncode"
_STEPS = 20
_MOST = 64
"""Nodes followed from one to its loader."""
_CHECKPOINT = "CheckpointLoaderSimple"
_LOADERS: dict[str, dict[str, tuple[str, ...]]] = {
    "model": {_CHECKPOINT: ("ckpt_name",), "UNETLoader": ("unet_name",)},
    "clip": {
        _CHECKPOINT: ("ckpt_name",),
        "CLIPLoader": ("clip_name",),
        "DualCLIPLoader": ("clip_name1", "clip_name2"),
        "TripleCLIPLoader": ("clip_name1", "clip_name2", "clip_name3"),
    },
    "vae": {_CHECKPOINT: ("ckpt_name",), "VAELoader": ("vae_name",)},
}
_FOLDERS = {"model": "diffusion_models", "clip": "text_encoders", "vae": "vae"}
_TYPE = {"UNETLoader": ("weight_dtype", "default"), "TripleCLIPLoader": ("type", "sd3")}
_FREE = ("ModelSampling", "LowtideFitCheck", "CLIPSetLastLayer", "FluxGuidance",
         "ConditioningZeroOut", "RescaleCFG")  # fmt: skip
"""Beginnings of classes that a link may pass through at no cost of memory."""


@dataclass(frozen=True)
class Loaded:
    """Files a part comes from. ``folder`` is ComfyUI's kind of folder, ``type`` the loader's."""

    folder: str
    names: tuple[str, ...]
    type: str
    on_host: bool
    link: tuple[str, int]
    """Of the loader's output."""


@dataclass(frozen=True)
class Wired:
    """One sampler's run.

    Attributes:
        nodes: those that are predicted -> their stages.
        parts: ``model``, ``clip`` and ``vae`` as far as the graph has them.
        optimized: the parts that go through Optimize Pipeline.
        selector: inputs of its Memory Level Selector; ``None`` without it.
        settings: inputs of Memory Settings between the two, in the order they are applied.
        uncounted: classes of nodes on the way whose memory is not counted.
        left_out: node -> why it is not predicted.
    """

    nodes: dict[str, str]
    parts: dict[str, Loaded]
    work: Work
    optimized: frozenset[str] = frozenset()
    selector: Mapping[str, Any] | None = None
    settings: tuple[Mapping[str, Any], ...] = ()
    uncounted: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)


def samples(node: Mapping[str, Any]) -> bool:
    """Whether a well-formed node samples, as far as its class and its inputs say."""
    return "sampler" in node["class_type"].lower() and "latent_image" in links(node)


def wired(graph: Graph) -> Wired:
    """The run of a graph's sampler.

    Raises:
        ConfigError: it has none or several, or one that hangs on what is not known here.
    """
    return _Reading({node: it for node, it in graph.items() if well_formed(it)}).found()


@dataclass(frozen=True)
class Beside:
    """What works beside a sampler's model.

    Attributes:
        classes: of nodes on the way to its model and its prompts whose memory is not known here.
        controls: links that ControlNets come by.
    """

    classes: tuple[str, ...]
    controls: tuple[tuple[str, int], ...]


def beside(graph: Graph, sampler: str) -> Beside:
    """What works beside the model of any well-formed node that samples."""
    classes: dict[str, None] = {}
    controls: dict[tuple[str, int], None] = {}
    todo = [
        (name, link[0])
        for name, link in links(graph[sampler]).items()
        if name in ("model", *_CONDITIONS)
    ]
    seen: set[tuple[str, str]] = set()
    while todo:
        name, node = todo.pop(0)
        found = graph.get(node)
        if (name, node) in seen or found is None or not well_formed(found):
            continue
        seen.add((name, node))
        kind, linked = str(found["class_type"]), links(found)
        if kind.startswith(_TEXT) or kind in _LOADERS["model"]:
            continue
        if kind != OPTIMIZE and not kind.startswith(_FREE):
            classes[kind] = None
        if "control_net" in linked:
            controls[linked["control_net"]] = None
        onward = ("model",) if name == "model" else _CONDITIONS
        todo += [(it, linked[it][0]) for it in onward if it in linked]
    return Beside(tuple(classes), tuple(controls))


class _Reading:
    """One graph being read; ``graph`` holds well-formed nodes only."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.optimizers: dict[str, str] = {}
        self.uncounted: dict[str, None] = {}
        self.left_out: dict[str, str] = {}

    def found(self) -> Wired:
        sampler = self._sampler()
        inputs = self.graph[sampler]["inputs"]
        work = self._work(sampler, inputs)
        nodes, parts = {sampler: DENOISE}, {"model": self._loader(sampler, "model")}
        encoders, decoders = self._prompts(sampler), self._decoders(sampler)
        for part, stage, ids in (("clip", ENCODE, encoders), ("vae", DECODE, decoders)):
            for node in ids:
                try:
                    loader = self._loader(node, part)
                except ConfigError as error:
                    self.left_out[node] = str(error)
                    continue
                if parts.setdefault(part, loader).link == loader.link:
                    nodes[node] = stage
                else:
                    self.left_out[node] = f"it has another {part.upper()} than the others"
        for node in self.left_out:
            nodes.pop(node, None)
        selector, settings = self._lowtide()
        return Wired(
            nodes,
            parts,
            work,
            frozenset(self.optimizers),
            selector,
            settings,
            tuple(self.uncounted),
            self.left_out,
        )

    def _sampler(self) -> str:
        samplers = [node for node, it in self.graph.items() if samples(it)]
        if len(samplers) != 1:
            raise ConfigError(
                f"it has {len(samplers)} samplers; graphs with one {SAMPLER} are predicted"
            )
        kind = self._class(self.graph[samplers[0]])
        if kind != SAMPLER:
            raise ConfigError(f"it samples by {kind}; graphs with one {SAMPLER} are predicted")
        return samplers[0]

    def _work(self, sampler: str, inputs: Mapping[str, Any]) -> Work:
        source = links(self.graph[sampler])["latent_image"][0]
        node = self.graph.get(source)
        kind = "nothing" if node is None else self._class(node)
        if node is None or kind not in _LATENTS:
            raise ConfigError(
                f"its latents come from {kind}; their size is known of {' and '.join(_LATENTS)}"
            )
        sizes = [node["inputs"].get(name, 1) for name in ("width", "height", "batch_size")]
        if not all(type(size) is int for size in sizes):
            raise ConfigError(f"width, height or batch of its {kind} come from another node")
        steps, guidance = inputs.get("steps"), inputs.get("cfg")
        return Work(
            sizes[0],
            sizes[1],
            batch=sizes[2],
            steps=steps if type(steps) is int and steps > 0 else _STEPS,
            guided=not isinstance(guidance, int | float) or guidance != 1,
        )

    def _prompts(self, sampler: str) -> list[str]:
        """The text encoders; those of the sampler's prompt first."""
        found: dict[str, None] = {}
        for name in ("positive", "negative"):
            try:
                found[self._prompt(sampler, name)] = None
            except ConfigError as error:
                self.left_out.setdefault(sampler, str(error))
        texts = [node for node, it in self.graph.items() if JUDGED.get(self._class(it)) == ENCODE]
        return list(dict.fromkeys((*found, *texts)))

    def _prompt(self, sampler: str, name: str) -> str:
        link, kind = links(self.graph[sampler]).get(name), "nothing"
        for _ in range(_MOST):
            node = None if link is None else self.graph.get(link[0])
            if node is None or link is None:
                break
            kind = self._class(node)
            if JUDGED.get(kind) == ENCODE:
                return link[0]
            if not kind.startswith(_FREE):
                break
            link = links(node).get("conditioning")
        raise ConfigError(f"its {name} prompt comes from {kind}, whose memory is not known here")

    def _decoders(self, sampler: str) -> list[str]:
        return [
            node
            for node, it in self.graph.items()
            if JUDGED.get(self._class(it)) == DECODE and links(it).get("samples") == (sampler, 0)
        ]

    def _loader(self, node: str, part: str) -> Loaded:
        """The files behind a node's input of that name."""
        link, kind = links(self.graph[node]).get(part), "nothing"
        passed: dict[str, None] = {}
        for _ in range(_MOST):
            found = None if link is None else self.graph.get(link[0])
            if found is None or link is None:
                break
            kind = self._class(found)
            if kind in _LOADERS[part]:
                self.uncounted |= passed
                return self._files(found, kind, part, link)
            if kind == OPTIMIZE:
                self.optimizers[part] = link[0]
            elif not kind.startswith(_FREE):
                passed[kind] = None
            link = links(found).get(part)
        raise ConfigError(f"its {part.upper()} comes from {kind}, which is not known here")

    def _files(
        self, node: Mapping[str, Any], kind: str, part: str, link: tuple[str, int]
    ) -> Loaded:
        inputs = node["inputs"]
        names = [inputs.get(name) for name in _LOADERS[part][kind]]
        texts = tuple(name for name in names if isinstance(name, str) and name)
        if len(texts) != len(names):
            raise ConfigError(f"which file its {kind} loads comes from another node")
        setting, usual = _TYPE.get(kind, ("type", "stable_diffusion"))
        said = inputs.get(setting, usual)
        folder = "checkpoints" if kind == _CHECKPOINT else _FOLDERS[part]
        return Loaded(folder, texts, str(said), inputs.get("device") == "cpu", link)

    def _lowtide(self) -> tuple[Mapping[str, Any] | None, tuple[Mapping[str, Any], ...]]:
        """Inputs of the selector and of the settings behind Optimize Pipeline."""
        used = set(self.optimizers.values())
        if not used:
            return None, ()
        if len(used) > 1:
            raise ConfigError("its parts go through several Optimize Pipelines")
        link = links(self.graph[used.pop()]).get("config")
        settings: list[Mapping[str, Any]] = []
        for _ in range(_MOST):
            found = None if link is None else self.graph.get(link[0])
            kind = None if found is None else self._class(found)
            if found is None or kind not in (SELECTOR, SETTINGS):
                break
            plain = {key: it for key, it in found["inputs"].items() if key != "config"}
            if any(isinstance(it, list | dict) for it in plain.values()):
                raise ConfigError(f"a widget of its {kind} comes from another node")
            if kind == SELECTOR:
                return plain, tuple(reversed(settings))
            settings.append(plain)
            link = links(found).get("config")
        raise ConfigError("its Optimize Pipeline has no Memory Level Selector")

    @staticmethod
    def _class(node: Mapping[str, Any]) -> str:
        return str(node["class_type"])
