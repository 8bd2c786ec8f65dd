"""Cases: what a prompt's end leaves in the history, and that no prompt waits or fails for it."""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
import types
import weakref

import torch
from lowtide.memory import learning
from lowtide.memory.adapters.comfy import executor, learned
from lowtide.memory.adapters.comfy.patchers import marked
from lowtide.memory.adapters.comfy.residency import Residency
from lowtide.memory.history_rows import FAILED, FITS, INTERRUPTED, OUT_OF_MEMORY, Row
from prompts import ANY, MIB, MODELS, Node, go, kinds, runner
from small import DEVICE, load, patcher, unload

import nodes

os.environ["LOWTIDE_HOME"] = tempfile.mkdtemp(prefix="lowtide-history-")
SECRET = "a cat that nobody shall know of"


class Latents(Node):
    def work(self, mb, a, b):
        return ({"samples": torch.zeros(2, 4, 8 * mb, 8)},)


class Sampler(Node):
    """Samples ``b`` with the model ``a`` beside ``mb`` MiB."""

    def work(self, mb, a, b):
        load(a)
        held = torch.zeros(mb * MIB, dtype=torch.uint8, device=DEVICE)
        del held
        return (b,)


class Out(Node):
    OUTPUT_NODE = True


class RunsOut(Sampler):
    OUTPUT_NODE = True

    def work(self, mb, a, b):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


class Breaks(Sampler):
    OUTPUT_NODE = True

    def work(self, mb, a, b):
        raise RuntimeError("as planned")


class Halts(Sampler):
    OUTPUT_NODE = True

    def work(self, mb, a, b):
        import comfy.model_management as mm

        raise mm.InterruptProcessingException()


class Coder(Node):
    """Gives the VAE or CLIP the case has set for its ``mb``."""

    RETURN_TYPES = (ANY,)

    def work(self, mb, a, b):
        return (MODELS[mb],)


class Decodes(Node):
    def work(self, mb, a, b):
        held = torch.zeros(mb * MIB, dtype=torch.uint8, device=DEVICE)
        del held
        return (torch.zeros(2, 16, 24, 3),)


class Prompts(Node):
    """Conditioning made with a CLIP, from a text."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"mb": ("INT", {}), "text": ("STRING", {"default": SECRET})},
            "optional": {"a": (ANY, {})},
        }

    def run(self, mb, text, a=None):
        return ([[torch.zeros(1, 77, 8), {}]],)


class Coder2(Coder):
    pass


for kind in (
    Latents, Sampler, Out, RunsOut, Breaks, Halts, Coder, Coder2, Decodes, Prompts,
):  # fmt: skip
    nodes.NODE_CLASS_MAPPINGS[kind.__name__] = kind


def coder(**what: object) -> types.SimpleNamespace:
    return types.SimpleNamespace(patcher=patcher(), **what)


def begin() -> None:
    unload()
    MODELS.clear()
    executor.uninstall()
    learning.reset()
    executor.install()


def rows() -> list[Row]:
    assert learning.flush()
    found = learning.history()
    return found._both(lambda table: table.all())


def case_each_stage_of_a_prompt_is_a_row() -> None:
    for kind in kinds():
        begin()
        MODELS[1] = patcher()
        MODELS[2] = coder(first_stage_model=torch.nn.Linear(2, 2))
        MODELS[3] = coder(cond_stage_model=torch.nn.Conv2d(2, 2, 1))
        one = runner(kind)
        spec = {
            "m": ("Loader", 1), "l": ("Latents", 2), "v": ("Coder", 2), "c": ("Coder2", 3),
            "p": ("Prompts", 5, "c", {"text": SECRET}),
            "s": ("Sampler", 3, "m", "l"), "d": ("Decodes", 9, "v", "s"),
            "e": ("Decodes", 1, "v", "d"), "x": ("Out", 0, "e", "p"),
        }  # fmt: skip
        go(one, **spec)
        found = {row.stage: row for row in rows()}
        assert set(found) == {"denoising", "decoding", "encoding", "text_encoding"}, found
        size = MODELS[1].model_size()
        sampled = found["denoising"]
        assert sampled.key.model == f"Model, {size / MIB:.1f} MB", sampled.key
        assert (sampled.key.shapes, sampled.key.size) == ("2x4x16x8", 2 * 16 * 8)
        assert (sampled.key.plan, sampled.level, sampled.outcome) == ("none", "none", FITS)
        span = next(it for it in executor.timelines()[-1]["nodes"] if it["node"] == "s")
        assert sampled.measured == span["peak_allocated"] >= size + 3 * MIB
        assert sampled.seconds == span["seconds"] and sampled.predicted is None
        assert sampled.free and sampled.free > sampled.measured
        assert found["decoding"].key.model.startswith("Linear,")
        assert found["decoding"].measured >= 9 * MIB
        assert (found["encoding"].key.shapes, found["encoding"].key.size) == (
            "2x16x24x3", 2 * 16 * 24,
        )  # fmt: skip
        assert found["text_encoding"].key.model.startswith("Conv2d,")
        assert "torch " in sampled.key.gpu
        learning.expect(sampled.key, "denoising", 1000, 2.0)
        go(one, **{**spec, "s": ("Sampler", 4, "m", "l")})
        again = rows()[len(found) :]
        assert [row.stage for row in again] == ["denoising", "decoding", "encoding"], again
        assert (again[0].predicted, again[0].predicted_seconds) == (1000, 2.0)


def case_nothing_of_a_prompt_is_readable_in_the_history() -> None:
    begin()
    MODELS[3] = coder(cond_stage_model=torch.nn.Conv2d(2, 2, 1))
    go(runner(), c=("Coder2", 3), p=("Prompts", 5, "c", {"text": SECRET}), x=("Out", 0, "p"))
    assert len(rows()) == 1
    path = learning.history().path
    learning.history().close()
    written = path.read_bytes()
    assert b"text_encoding" in written and b"cat" not in written
    assert os.fsencode(path.parent) not in written


def case_how_a_prompt_ended_is_kept() -> None:
    for kind, outcome in (
        ("RunsOut", OUT_OF_MEMORY), ("Breaks", FAILED), ("Halts", INTERRUPTED),
    ):  # fmt: skip
        begin()
        MODELS[1] = marked(patcher(), Residency(plan="ultra, budget_bytes=1.00 GB"))
        go(runner(), m=("Loader", 1), l=("Latents", 2), s=(kind, 3, "m", "l"))
        (row,) = rows()
        assert (row.outcome, row.level) == (outcome, "ultra"), row
        assert row.key.plan == "ultra, budget_bytes=1.00 GB"
        said = learning.history().outcome(row.key, "ultra", free=row.free)
        assert said == (OUT_OF_MEMORY if kind == "RunsOut" else None)


def case_a_node_that_ran_again_with_less_did_not_fit() -> None:
    begin()
    MODELS[1] = patcher()
    go(runner(), m=("Loader", 1), l=("Latents", 2), s=("Sampler", 3, "m", "l"), x=("Out", 0, "s"))
    (row,) = rows()
    spans = executor._timelines.last().nodes
    work = {"s": learned.Work("denoising", row.key.model, "s", 5, "none")}
    again = [executor.Attempt("s", "room", "finished", 1.0)]
    more = {"ran_out": False, "free": None, "at": 0.0}
    done = [span for span in spans if span.node == "s"]
    assert [it.outcome for it in learned.rows("gpu", work, done, again, **more)] == [OUT_OF_MEMORY]
    assert [it.outcome for it in learned.rows("gpu", work, done, [], **more)] == [FITS]


def case_a_settings_node_switches_it_off() -> None:
    for said, count in (("off", 0), ("level", 1), ("on", 1)):
        begin()
        MODELS[1] = patcher()
        go(
            runner(),
            q=("LowtideMemorySettings", 0, {"history": said}),
            m=("Loader", 1), l=("Latents", 2), s=("Sampler", 3, "m", "l"),
            x=("Out", 0, "s", "q"),
        )  # fmt: skip
        assert len(rows()) == count, said


def case_a_prompt_waits_less_than_a_millisecond() -> None:
    begin()
    MODELS[1] = patcher()
    took: dict[str, list[float]] = {"learn": [], "log": []}
    learn, log = learned.take, learned.log

    def timed(name: str, function: object) -> object:
        def call(*args: object) -> None:
            started = time.perf_counter()
            function(*args)
            took[name].append(time.perf_counter() - started)

        return call

    learned.take, learned.log = timed("learn", learn), timed("log", log)
    try:
        one = runner()
        for mb in range(12):
            go(one, m=("Loader", 1), l=("Latents", 2), s=("Sampler", mb, "m", "l"),
               x=("Out", mb, "s"))  # fmt: skip
    finally:
        learned.take, learned.log = learn, log
    assert len(rows()) == len(took["log"]) == 12
    each = {name: statistics.median(times[2:]) for name, times in took.items()}
    print(each)
    assert sum(each.values()) < 1e-3, each


def case_the_history_keeps_no_model() -> None:
    begin()
    MODELS[1] = patcher()
    gone = weakref.ref(MODELS[1].model)
    one = runner()
    go(one, m=("Loader", 1), l=("Latents", 2), s=("Sampler", 3, "m", "l"), x=("Out", 0, "s"))
    assert len(rows()) == 1
    unload()
    MODELS.clear()
    del one
    gc.collect()
    assert gone() is None


def case_no_prompt_fails_for_its_history() -> None:
    def broken(*_: object) -> None:
        raise OSError("as planned")

    plain = {name: getattr(learned, name) for name in ("work_of", "gpu")}
    for name in plain:
        begin()
        MODELS[1] = patcher()
        setattr(learned, name, broken)
        try:
            ran = go(runner(), m=("Loader", 1), l=("Latents", 2), s=("Sampler", 3, "m", "l"),
                     x=("Out", 0, "s"))  # fmt: skip
        finally:
            setattr(learned, name, plain[name])
        assert set(ran) == {"m", "l", "s", "x"}
        assert executor.timelines()[-1]["status"] == "done"
        assert rows() == []


def case_what_is_no_one_models_work_is_left_out() -> None:
    one, vae = patcher(), coder(first_stage_model=torch.nn.Linear(2, 2))
    latent, clip = {"samples": torch.zeros(1, 4, 8, 8)}, coder(cond_stage_model=one)
    guider = types.SimpleNamespace(model_patcher=one)
    assert learned.work_of([one], None) is None, "a LoRA loader"
    assert learned.work_of([one, vae, latent], None) is None, "two models, one figure"
    assert learned.work_of([vae], None) is None
    assert learned.work_of([one, clip], [[one]]) is None
    assert learned.work_of([clip], [[clip]]) is None, "a node that sets the layer"
    assert learned.work_of([guider, latent], None).stage == "denoising"
    several = {"samples": types.SimpleNamespace(shape="no shape")}
    assert learned.work_of([one, several], None) is None
