"""Every reason has its words, and they promise what the scheduler does."""

import pytest

from espalier.reasons import ACCOUNTS, account
from espalier.states import NOT_CHARGED, NOT_RETRIED, Reason


def test_every_reason_is_a_sentence() -> None:
    assert set(ACCOUNTS) == set(Reason)
    for meant in ACCOUNTS.values():
        assert meant.happened.endswith(".")
        assert not meant.next or meant.next.endswith(".")


@pytest.mark.parametrize("reason", sorted(NOT_RETRIED))
def test_what_is_not_tried_again_says_so(reason: Reason) -> None:
    assert "not tried again" in account(reason).next


@pytest.mark.parametrize("reason", sorted(NOT_CHARGED))
def test_what_is_not_charged_promises_another_attempt(reason: Reason) -> None:
    words = account(reason).next
    assert "tries" not in words
    assert any(word in words for word in ("goes on", "another worker", "next of its own"))


def test_a_newer_versions_reason_is_told_by_its_name() -> None:
    assert account("struck_by_lightning").happened == "It ended: struck by lightning."
    assert account(None).happened == ""
