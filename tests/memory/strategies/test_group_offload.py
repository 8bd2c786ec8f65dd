from __future__ import annotations

from typing import Any

import pytest
import torch
from lowtide.memory.adapters.diffusers import GROUP_HOOKS, hook_of, modules_of
from lowtide.memory.errors import ConfigError
from lowtide.memory.strategies.base import Applied
from lowtide.memory.strategies.group_offload import GroupOffload, apply
from lowtide.memory.tensors import device_bytes
from lowtide.tests.memory.strategies.pipes import Plain, Run, image, undo

LEAF, BLOCK = "leaf_level", "block_level"


def runs(plain: Plain, config: GroupOffload, count: int = 2) -> list[Run]:
    """That many runs under the config, and the undo."""
    outcomes = apply(config, plain.pipe)
    found = [plain.measured() for _ in range(count)]
    undo(outcomes)
    return found


@pytest.mark.parametrize("name", ["tiny-sd15", "tiny-sdxl", "tiny-flux"])
@pytest.mark.parametrize(("kind", "saved"), [(LEAF, 0.95), (BLOCK, 0.6)])
def test_groups_give_the_same_image_and_a_stream_does_not_raise_the_peak(
    accelerator: Any, name: str, kind: str, saved: float
) -> None:
    plain = Plain(accelerator, name)
    without = runs(plain, GroupOffload(accelerator.device, kind, use_stream=False))
    plain.assert_restored()
    streamed = runs(plain, GroupOffload(accelerator.device, kind, use_stream=True))
    plain.assert_restored()
    for run in (*without, *streamed):
        assert torch.equal(run.image, plain.run.image)
        assert run.peak < plain.run.peak - saved * plain.weights
        assert run.h2d > 1.3 * plain.weights, "the denoiser's weights go up once a step"
    assert max(run.peak for run in streamed) <= max(run.peak for run in without)
    assert without[0].d2h > 1.3 * plain.weights
    assert all(run.d2h < 0.7 * without[0].d2h for run in streamed)
    if kind == LEAF:
        assert all(run.d2h < 0.01 * plain.weights for run in streamed), "weights are dropped"


def test_leaves_take_less_than_blocks_and_blocks_less_than_pairs(accelerator: Any) -> None:
    plain = Plain(accelerator)
    peaks = [
        max(run.peak for run in runs(plain, GroupOffload(accelerator.device, kind, blocks, False)))
        for kind, blocks in ((LEAF, 1), (BLOCK, 1), (BLOCK, 2))
    ]
    assert peaks[0] < peaks[1] < peaks[2] < plain.run.peak
    plain.assert_restored()


def test_the_prefetch_stays_where_it_fits_under_the_peak(accelerator: Any) -> None:
    plain = Plain(accelerator)
    outcomes = apply(GroupOffload(accelerator.device, use_stream=True), plain.pipe)
    hooks = [hook_of(part, GROUP_HOOKS[0]) for part in plain.pipe.unet.modules()]
    groups = [hook for hook in hooks if hook is not None]
    assert all(hook.next_group is None for hook in groups)
    plain.measured()
    linked = sum(hook.next_group is not None for hook in groups)
    alone = sum(hook.group.onload_self for hook in groups)
    assert 0 < linked < len(groups) - 1, "some links are pruned, most are kept"
    assert linked > 0.5 * len(groups)
    assert linked + alone >= len(groups)
    undo(outcomes)
    plain.assert_restored()


def test_page_locked_memory_is_held_once_or_per_transfer_and_given_back(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    once = runs(plain, GroupOffload(accelerator.device, use_stream=True), 1)[0]
    assert accelerator.counters()["pinned"] == 0
    outcomes = apply(
        GroupOffload(accelerator.device, use_stream=True, low_cpu_mem=True), plain.pipe
    )
    per_transfer = plain.measured()
    assert 0 < accelerator.counters()["pinned_peak"] < 0.1 * plain.weights
    undo(outcomes)
    assert once.pinned == pytest.approx(plain.weights, rel=0.02)
    assert per_transfer.pinned == 0
    assert torch.equal(once.image, per_transfer.image)
    plain.assert_restored()


def test_recorded_streams_change_no_image(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    config = GroupOffload(accelerator.device, use_stream=True, record_stream=True)
    for run in runs(plain, config):
        assert torch.equal(run.image, plain.run.image)
    accelerator.synchronize()
    plain.assert_restored()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupted_forward_is_followed_by_a_whole_one(
    accelerator: Any, stream: bool, at: int
) -> None:
    plain = Plain(accelerator, size=64)
    outcomes = apply(GroupOffload(accelerator.device, use_stream=stream), plain.pipe)
    forwards: list[None] = []

    def stop(*_: Any) -> None:
        forwards.append(None)
        if len(forwards) == at:
            raise KeyboardInterrupt

    handle = plain.pipe.unet.mid_block.attentions[0].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        image(plain.pipe, size=64)
    handle.remove()
    ours = [plain.measured() for _ in range(2)]
    assert all(torch.equal(run.image, plain.run.image) for run in ours)
    assert max(run.peak for run in ours) < plain.run.peak - 0.9 * plain.weights
    undo(outcomes)
    plain.assert_restored()


def test_an_undo_right_after_an_interrupt_is_complete(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    outcomes = apply(GroupOffload(accelerator.device, BLOCK, use_stream=True), plain.pipe)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = plain.pipe.unet.mid_block.attentions[0].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        image(plain.pipe, size=64)
    handle.remove()
    assert device_bytes(plain.pipe.unet) > 0
    undo(outcomes)
    plain.assert_restored()


@pytest.mark.parametrize("low_cpu_mem", [False, True])
def test_casts_of_a_vae_are_followed(accelerator: Any, low_cpu_mem: bool) -> None:
    plain = Plain(accelerator, "tiny-sdxl", "float16", size=64)
    assert plain.pipe.vae.config.force_upcast
    config = GroupOffload(accelerator.device, use_stream=True, low_cpu_mem=low_cpu_mem)
    for run in runs(plain, config):
        assert torch.equal(run.image, plain.run.image)
    assert plain.pipe.vae.dtype == torch.float16
    plain.assert_restored()


def test_twins_have_the_new_type_after_a_cast(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    vae = plain.pipe.vae
    outcomes = apply(GroupOffload(accelerator.device, use_stream=True, only=("vae",)), plain.pipe)
    vae.half()
    twins = [
        twin
        for part in vae.modules()
        if (hook := hook_of(part, GROUP_HOOKS[0])) is not None
        for twin in hook.group.cpu_param_dict.values()
    ]
    assert len(twins) > 50
    assert {(twin.dtype, twin.is_pinned()) for twin in twins} == {(torch.float16, True)}
    with torch.no_grad():
        latents = torch.randn(1, 4, 8, 8).half().to(accelerator.device)
        assert vae.decode(latents).sample.dtype == torch.float16
    vae.float()
    undo(outcomes)
    assert vae.dtype == torch.float32
    assert device_bytes(vae) == 0


def test_only_the_named_components_are_offloaded(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    outcomes = apply(GroupOffload(accelerator.device, only=("unet",)), plain.pipe)
    assert [one.component for one in outcomes] == ["unet"]
    hooked = {
        name: any(hook_of(part, GROUP_HOOKS[0]) for part in module.modules())
        for name, module in modules_of(plain.pipe).items()
    }
    assert hooked == {"vae": False, "text_encoder": False, "unet": True}
    undo(outcomes)
    plain.assert_restored()


def test_a_class_without_group_offload_stays_on_the_device(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    plain.pipe.vae._supports_group_offloading = False
    outcomes = apply(GroupOffload(accelerator.device), plain.pipe)
    details = {one.component: one.detail for one in outcomes if isinstance(one, Applied)}
    assert "its class does not support group offload" in details["vae"]
    assert {p.device for p in plain.pipe.vae.parameters()} == {accelerator.device}
    assert torch.equal(plain.measured().image, plain.run.image)
    undo(outcomes)
    del plain.pipe.vae._supports_group_offloading
    plain.assert_restored()


def test_streams_are_chosen_where_there_are_some_and_refused_where_not(accelerator: Any) -> None:
    assert GroupOffload(accelerator.device).streams
    assert not GroupOffload(accelerator.device, use_stream=False).streams
    assert not GroupOffload(torch.device("mps")).streams
    assert not GroupOffload(accelerator.device, BLOCK, blocks=2).streams
    with pytest.raises(ConfigError, match=r"mps has no streams.*use_stream=None"):
        _ = GroupOffload(torch.device("mps"), use_stream=True).streams


def test_a_failure_half_way_undoes_itself(accelerator: Any) -> None:
    plain = Plain(accelerator, size=64)
    config = GroupOffload(accelerator.device, use_stream=True, only=("unet", "vae", "nothing"))
    with pytest.raises(KeyError, match="nothing"):
        apply(config, plain.pipe)
    plain.assert_restored()
    assert accelerator.counters()["pinned"] == 0
