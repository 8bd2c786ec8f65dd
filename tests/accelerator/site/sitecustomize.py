"""Puts the simulated accelerator under an unmodified program: PYTHONPATH=tests/accelerator/site.

Does nothing unless LOWTIDE_SIM is set. npu: ``import torch_npu`` (which such programs do by
themselves) activates it. cuda: there is no such import, so it is activated as soon as torch is
imported; processes that never import torch stay as they are.
"""

import importlib.abc
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def load_package():
    """tests/accelerator as the package ``lowtide_sim``, whatever the checkout is called."""
    if "lowtide_sim" not in sys.modules:
        folder = os.path.dirname(HERE)
        spec = importlib.util.spec_from_file_location(
            "lowtide_sim",
            os.path.join(folder, "__init__.py"),
            submodule_search_locations=[folder],
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules["lowtide_sim"] = module
        spec.loader.exec_module(module)
    return sys.modules["lowtide_sim"]


class AfterTorch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Wraps the import of torch: activates the accelerator when it is done."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        # Back in its place afterwards: programs ask for torch's spec without importing it.
        place = sys.meta_path.index(self)
        del sys.meta_path[place]
        try:
            spec = importlib.util.find_spec("torch")
        finally:
            sys.meta_path.insert(place, self)
        if spec is None:
            return None
        self.inner = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec):
        return self.inner.create_module(spec)

    def exec_module(self, module):
        sys.meta_path.remove(self)
        module.__spec__.loader = module.__loader__ = self.inner
        self.inner.exec_module(module)
        load_package().activate("cuda")


flavour = os.environ.get("LOWTIDE_SIM")
if flavour == "npu":
    sys.path.insert(1, os.path.join(HERE, "npu"))
elif flavour == "cuda":
    sys.meta_path.insert(0, AfterTorch())
