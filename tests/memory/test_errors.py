"""One base to catch, and the builtin each error also is."""

import pytest
from lowtide.memory import errors


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.UnknownSettingError, AttributeError),
        (errors.UnknownSettingError, errors.ConfigError),
        (errors.BudgetError, errors.ConfigError),
        (errors.TargetError, TypeError),
        (errors.DeviceError, RuntimeError),
        (errors.PipelineLoadError, Exception),
        (errors.Interrupted, Exception),
    ],
)
def test_every_error_is_caught_by_the_base_and_by_its_builtin(error, builtin):
    assert issubclass(error, errors.LowtideError)
    assert issubclass(error, builtin)
