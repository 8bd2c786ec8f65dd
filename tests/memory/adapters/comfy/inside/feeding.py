"""Cases: which feed-forward blocks are worked on in chunks, in which families."""

from __future__ import annotations

from pathlib import Path

import comfy.ldm.modules.attention
import torch
from chunks import FIRST, chunked
from denoisers import CPU, OPS, distance, patcher
from lowtide.memory.adapters.comfy import chunking
from lowtide.memory.adapters.comfy.feed_forwards import _CLASSES as feed_forward_classes
from lowtide.memory.adapters.comfy.feed_forwards import feed_forwards
from lowtide.memory.strategies.base import Applied, Skipped


def case_blocks_another_node_replaced_stay() -> None:
    base = patcher("flux")
    theirs = torch.nn.Identity()
    one = base.clone()
    one.add_object_patch(FIRST["flux"], theirs)
    one.add_object_patch(f"{FIRST['flux'].replace('img', 'txt')}.forward", theirs.forward)
    clone, entries = chunked(one)
    assert clone.get_model_object(FIRST["flux"]) is theirs
    assert "another node has replaced 2 feed-forward blocks: they stay" in [
        entry.reason for entry in entries if isinstance(entry, Skipped)
    ]
    (done,) = [entry for entry in entries if isinstance(entry, Applied)]
    assert "through 2 feed-forward" in done.detail
    one.add_object_patch("diffusion_model", theirs)
    assert chunked(one)[0] is one


def case_a_model_without_known_blocks_is_said() -> None:
    from small import patcher as plain

    base = plain()
    clone, entries = chunked(base)
    assert clone is base
    (entry,) = entries
    assert entry.reason == "it has no feed-forward block that Lowtide knows"


def case_every_class_in_the_table_is_one_of_the_cores() -> None:
    folder = Path(comfy.ldm.modules.attention.__file__).parents[1]
    missing = []
    for place, names in feed_forward_classes.items():
        file = folder / f"{place.replace('.', '/')}.py"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        missing += [f"{place}.{name}" for name in names if f"class {name}(" not in text]
    newest = hasattr(comfy.ldm.modules.attention, "AttentionTensorContainer")
    assert not missing if newest else len(missing) < 16, missing


def case_blocks_of_other_families_are_exact_in_chunks() -> None:
    from comfy.ldm.aura.mmdit import MLP
    from comfy.ldm.cosmos.predict2 import GPT2FeedForward
    from comfy.ldm.hidream.model import MOEFeedForwardSwiGLU
    from comfy.ldm.lightricks.model import FeedForward as OfLtx
    from comfy.ldm.lumina.model import FeedForward as OfLumina
    from comfy.ldm.qwen_image.model import FeedForward as OfQwen
    from comfy.ldm.wan.model import WanAttentionBlock

    settings = {"operations": OPS, "dtype": torch.float32, "device": CPU}
    blocks = {
        "aura": MLP(64, **settings),
        "cosmos": GPT2FeedForward(64, 256, **settings),
        "hidream": MOEFeedForwardSwiGLU(64, 128, 4, 2, **settings),
        "ltx": OfLtx(64, 64, **settings),
        "lumina": OfLumina(64, 256, 32, None, operation_settings=settings),
        "qwen": OfQwen(64, **settings),
        "wan": WanAttentionBlock("t2v_cross_attn", 64, 256, 4, operation_settings=settings).ffn,
    }
    generator = torch.Generator().manual_seed(5)
    for family, block in blocks.items():
        holder = torch.nn.Module()
        holder.ffn = block
        for parameter in block.parameters():
            parameter.requires_grad_(False)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        assert [path for path, _ in feed_forwards(holder)] == ["ffn"], family
        twin = chunking._twin(block, 7)
        shape = (2, 3, 4, 5, 64) if family == "cosmos" else (2, 60, 64)
        x = torch.randn(*shape, generator=generator)
        with torch.inference_mode():
            found, expected = twin(x), block(x)
        assert found.shape == expected.shape, family
        assert distance(found, expected) < 1e-6, family


def case_nothing_that_mixes_tokens_is_taken() -> None:
    wide, narrow = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)

    class Block(torch.nn.Module):
        def __init__(self, mlp: torch.nn.Module) -> None:
            super().__init__()
            self.mlp = mlp

    class Attentive(torch.nn.Module):
        pass

    sequence = torch.nn.Sequential
    for inner, known in (
        (sequence(wide, torch.nn.GELU(), narrow), True),
        (sequence(wide, torch.nn.Conv1d(8, 8, 3), narrow), False),
        (sequence(wide, Attentive(), narrow), False),
        (sequence(wide, torch.nn.SiLU(), torch.nn.Linear(8, 8)), False),
        (sequence(torch.nn.SiLU(), wide), False),
        (wide, False),
    ):
        assert [path for path, _ in feed_forwards(Block(inner))] == ["mlp"] * known, inner
