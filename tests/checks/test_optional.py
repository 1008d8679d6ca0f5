import math

import pytest

from pyro_sep.checks.optional import import_optional


def test_a_module_that_is_there() -> None:
    assert import_optional("math", "pi", "math", "it") is math


def test_what_is_missing_is_said_in_a_line() -> None:
    message = r"^stft: got no organ \(No module named 'organ_pipes'\), expected it; build one$"
    with pytest.raises(ValueError, match=message):
        import_optional("organ_pipes", "stft", "organ", "it; build one")
