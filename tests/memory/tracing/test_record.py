"""What the recorder writes down, on modules whose memory is easily counted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lowtide.memory.errors import TargetError
from lowtide.memory.planner.trace import ENTERED, LEFT
from lowtide.memory.tracing import fake_copy, fake_mode, on_meta, record
from torch import nn

HALF = torch.float16


def traced(module, *shapes, dtype=HALF, attention="fused", call=None):
    mode = fake_mode()
    twin = fake_copy(module.to(dtype), mode)
    with mode:
        inputs = [torch.empty(shape, dtype=dtype, device="cuda:0") for shape in shapes]
    run = call or (lambda twin, *inputs: twin(*inputs))
    return record(twin, lambda: run(twin, *inputs), mode, inputs, attention=attention)


def test_births_deaths_weights_and_flops():
    trace = traced(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 8)), (16, 64))
    assert trace.weight_bytes == 2 * (64 * 256 + 256 + 256 * 8 + 8)
    assert trace.input_bytes == 2 * 16 * 64
    assert trace.output_bytes == 2 * 16 * 8
    # The widest moment: the input, which its caller holds, and both of the activation's maps.
    assert trace.activation_peak() == 2 * 16 * (64 + 256 + 256)
    assert trace.flops == 2 * 16 * (64 * 256 + 256 * 8)
    read = [trace.weights[index].name for o in trace.operations for index in o.weights]
    assert read == ["0.bias", "0.weight", "2.bias", "2.weight"]


def test_modules_are_entered_and_left():
    trace = traced(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), (1, 4))
    paths = [(kind, trace.modules[v][0]) for kind, v in trace.steps() if kind in (ENTERED, LEFT)]
    assert paths == [
        (ENTERED, ""), (ENTERED, "0"), (LEFT, "0"), (ENTERED, "1"), (LEFT, "1"), (LEFT, ""),
    ]  # fmt: skip
    assert [kind for _, kind, _ in trace.modules] == ["Sequential", "Linear", "Linear"]


def test_a_convolution_takes_input_weight_and_output_again():
    trace = traced(nn.Conv2d(8, 16, 3, padding=1, bias=False), (1, 8, 32, 32))
    maps = 2 * 32 * 32 * (8 + 16)
    assert trace.activation_peak(0) == maps
    assert trace.activation_peak(1) == 2 * maps + trace.weight_bytes
    assert trace.activation_peak(0.5) == maps + (maps + trace.weight_bytes) // 2


class Attends(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize(
    ("attention", "dtype", "channels", "beside"),
    [
        ("fused", HALF, 64, 4 * 2 * 128),  # log-sum-exp of 100 rows, in blocks of 128
        ("fused", torch.float32, 64, 4 * 2 * 128),  # no flash in float32: blocks of 32
        ("efficient", HALF, 160, 4 * 2 * 128 + 4 * 2 * 100 * 160),  # and a wide accumulator
        ("bare", HALF, 64, 0),
    ],
)
def test_attention_allocates_what_its_kernel_does(attention, dtype, channels, beside):
    shape = (1, 2, 100, channels)
    trace = traced(Attends(), shape, shape, shape, dtype=dtype, attention=attention)
    size = 2 * 100 * channels * torch.empty(0, dtype=dtype).element_size()
    assert trace.activation_peak() == 4 * size + beside
    assert trace.flops == 4 * 2 * 100 * 100 * channels


def test_attention_without_a_kernel_writes_its_scores():
    shape = (1, 2, 100, 64)
    trace = traced(Attends(), shape, shape, shape, attention="math")
    assert trace.activation_peak() > 4 * 2 * 100 * 64 * 2 + 2 * 2 * 100 * 100 * 2


class Visits(nn.Module):
    def forward(self, x):
        return x.to("cpu").to("cuda:0")


def test_copies_over_the_bus_are_counted_and_host_memory_is_not():
    trace = traced(Visits(), (1000,))
    assert trace.arriving == 2000
    assert sum(operation.leaving for operation in trace.operations) == 2000
    assert trace.activation_peak() == 4000


class Asks(nn.Module):
    def forward(self, x):
        return x * x.sum().item()


def test_what_asks_for_a_value_cannot_be_traced():
    with pytest.raises(TargetError, match="Asks cannot be traced without computing"):
        traced(Asks(), (4,))


def test_a_copy_has_no_hooks_and_leaves_the_module_alone():
    module = nn.Linear(4, 4)
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    weight = module.weight
    trace = traced(module.float(), (1, 4), dtype=torch.float32)
    assert calls == []
    assert trace.weight_bytes == 80
    assert module.weight is weight
    assert len(module._forward_pre_hooks) == 1
    module(torch.zeros(1, 4))
    assert calls == [1]


def test_tied_weights_count_once():
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    assert traced(module, (1, 4)).weight_bytes == 32


def test_modules_on_meta_take_no_memory_and_the_initialisers_come_back():
    before = nn.init.kaiming_uniform_, nn.Linear.reset_parameters
    with on_meta():
        module = nn.Linear(1 << 20, 1 << 20)
    assert module.weight.is_meta
    assert (nn.init.kaiming_uniform_, nn.Linear.reset_parameters) == before
    assert nn.Linear(4, 4).weight.std() > 0
