import pytest

from espalier.errors import Conflict, EspalierError, InvalidInput, LeaseLost, Unavailable
from worker.control import BACKOFF, FAULT_TRIES, WORK_TRIES, is_final_for_work, patiently


class Answers:
    """Raises what it was given, one after the other, then says ``there``."""

    def __init__(self, *errors: EspalierError) -> None:
        self.errors = list(errors)
        self.waits: list[float] = []

    def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "there"

    def patiently(self) -> str:
        return patiently(self, "Trying", self.waits.append)


def test_an_outage_is_waited_for_as_long_as_it_takes() -> None:
    answers = Answers(*[Unavailable("away")] * 50)
    assert answers.patiently() == "there"
    assert answers.waits == [*BACKOFF, *[BACKOFF[-1]] * (50 - len(BACKOFF))]


def test_an_internal_error_is_borne_for_a_while() -> None:
    assert Answers(*[EspalierError("deadlock")] * FAULT_TRIES).patiently() == "there"
    with pytest.raises(EspalierError, match="bug"):
        Answers(*[EspalierError("bug")] * (FAULT_TRIES + 1)).patiently()


@pytest.mark.parametrize("error", [InvalidInput("no"), LeaseLost("gone")])
def test_a_refusal_is_final(error: EspalierError) -> None:
    answers = Answers(Unavailable("away"), error)
    with pytest.raises(type(error)):
        answers.patiently()
    assert len(answers.waits) == 1


def test_waiting_may_give_up() -> None:
    def give_up(seconds: float) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        patiently(Answers(Unavailable("away")), "Trying", give_up)


def test_finished_work_is_offered_for_longer() -> None:
    faults = [EspalierError("the store's driver raised")] * WORK_TRIES
    at_once = [Conflict("somebody wrote at the same moment")]
    for errors in (faults, at_once):
        answers = Answers(*errors)
        assert patiently(answers, "Trying", answers.waits.append, is_final_for_work) == "there"
    for error in (LeaseLost("gone"), InvalidInput("no")):
        refused = Answers(error)
        with pytest.raises(type(error)):
            patiently(refused, "Trying", refused.waits.append, is_final_for_work)
        assert refused.waits == []
