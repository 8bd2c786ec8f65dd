"""Who holds device memory: found by name, wherever the tensor is kept."""

import gc
import types
import weakref

import pytest
import torch
from lowtide.memory import holders as module
from lowtide.memory.holders import Holder, holders
from lowtide.memory.units import MIB

pytestmark = pytest.mark.usefixtures("thawed")

KEPT: list[torch.Tensor] = []
CACHE: dict[str, object] = {}


def tensor(device, mb=3):
    return torch.zeros(mb * MIB, dtype=torch.uint8, device=device)


class Node:
    """As a node pack would write it."""

    cache: object = None

    def __init__(self, held=None):
        self.held = held


@pytest.fixture(autouse=True)
def empty():
    yield
    KEPT.clear()
    CACHE.clear()
    Node.cache = None


def test_a_list_of_a_module_is_named(accelerator):
    KEPT.append(tensor(accelerator.device))
    assert holders(accelerator.device) == [Holder(f"{__name__}.KEPT", 3 * MIB, 1)]


def test_a_dict_within_a_dict_of_a_module_is_named(accelerator):
    CACHE["deep"] = {"a": [{"b": tensor(accelerator.device)}]}
    assert holders(accelerator.device) == [Holder(f"{__name__}.CACHE", 3 * MIB, 1)]


def test_an_attribute_of_an_instance_is_named_by_its_class(accelerator):
    node = Node(tensor(accelerator.device))
    assert holders(accelerator.device) == [Holder(f"{__name__}.Node.held", 3 * MIB, 1)]
    del node


def test_an_attribute_of_a_class_is_named(accelerator):
    Node.cache = tensor(accelerator.device)
    assert holders(accelerator.device) == [Holder(f"{__name__}.Node.cache", 3 * MIB, 1)]


def test_a_closure_is_named_by_its_function(accelerator):
    def make():
        held = tensor(accelerator.device)
        return lambda: held

    function = make()
    (found,) = holders(accelerator.device)
    assert "lambda" in found.owner and found.held == 3 * MIB
    del function


def test_a_running_function_is_named_with_its_line(accelerator):
    held = tensor(accelerator.device)
    (found,) = holders(accelerator.device)
    assert found.owner.startswith(
        "test_a_running_function_is_named_with_its_line() in test_holders"
    )
    del held


def test_views_and_clones_of_the_name_count_once(accelerator):
    KEPT.append(tensor(accelerator.device))
    KEPT.append(KEPT[0][: MIB // 2])
    assert holders(accelerator.device)[0].held == 3 * MIB


def test_what_is_known_is_left_out(accelerator):
    KEPT.append(tensor(accelerator.device))
    KEPT.append(tensor(accelerator.device, 2))
    assert holders(accelerator.device, known=[KEPT[0]]) == [Holder(f"{__name__}.KEPT", 2 * MIB, 1)]


def test_the_largest_come_first_and_the_rest_is_one_sum(accelerator, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 1)
    KEPT.append(tensor(accelerator.device, 5))
    CACHE["x"] = tensor(accelerator.device, 2)
    found = holders(accelerator.device)
    assert [(it.owner, it.held) for it in found] == [
        (f"{__name__}.KEPT", 5 * MIB),
        ("smaller tensors", 2 * MIB),
    ]


def test_a_modules_weights_are_named_by_who_has_the_module(accelerator):
    CACHE["model"] = torch.nn.Sequential(torch.nn.Linear(512, 512)).to(accelerator.device)
    owners = {it.owner for it in holders(accelerator.device)}
    assert owners == {f"{__name__}.CACHE"}


def test_other_devices_and_the_host_are_not_looked_at(accelerator):
    KEPT.append(torch.zeros(MIB))
    assert holders(accelerator.device) == []


def test_objects_that_lie_about_their_class_are_not_asked(accelerator):
    class Liar(types.SimpleNamespace):
        @property
        def __class__(self):
            raise RuntimeError("asked")

    liar = Liar()
    assert holders(accelerator.device) == []
    del liar


def test_a_look_keeps_nothing_alive(accelerator):
    held = [torch.zeros(MIB, dtype=torch.uint8, device=accelerator.device)]
    gone = weakref.ref(held[0])
    gc.disable()
    try:
        assert holders(accelerator.device)
        held.clear()
        assert gone() is None, "without a collection"
    finally:
        gc.enable()
