"""What `connect` says of an address that is none."""

from __future__ import annotations

import pytest

import runner
from runner.errors import SettingsError


@pytest.mark.parametrize("url", ["nonsense", "http://localhost", "", "redis://host:port"])
def test_an_address_that_is_none_is_refused_before_anything_is_opened(url: str) -> None:
    with pytest.raises(SettingsError, match="not an address of Redis"):
        runner.connect(url)


def test_a_password_in_it_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        runner.connect("http://user:secret@localhost")
    assert "secret" not in str(caught.value)
