"""A model compared with what was recorded of another, against both in memory at once."""

from io import StringIO
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from tests.integration.engine.child import make_task
from worker.engine import recording, tiny
from worker.engine.measure import Limits, measure
from worker.engine.models import Loaded, load_model
from worker.engine.proofs import HeldOut, compare, held_out
from worker.engine.report import Cancelled, Job, Orders, Reporter


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Loaded, Loaded]:
    """A model, and itself at 3 bits."""
    directory = tmp_path_factory.mktemp("tiny")
    tiny.make(directory, steps=20, layers=1)
    first, second = load_model(directory), load_model(directory)
    nn.quantize(second.model, 32, 3)
    return first, second


@pytest.fixture
def job(dataset: Path, tmp_path: Path) -> Job:
    task = make_task(tmp_path, "quantize", {}, {"model": tmp_path, "data": dataset})
    return Job(task, Reporter(StringIO()), Orders(StringIO()))


@pytest.fixture
def text(job: Job, two: tuple[Loaded, Loaded]) -> HeldOut:
    return held_out(job, two[0], Limits(4, 2, 2048, 3, rows=3))


def test_it_is_the_comparison_of_both(
    job: Job,
    two: tuple[Loaded, Loaded],
    text: HeldOut,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = two
    wanted = compare(job, first.model, second.model, text)
    monkeypatch.setattr(recording, "_CHUNK", 50 * 4 * 512)  # several of them in a batch
    kept = recording.record(job, first.model, text, tmp_path / "kept")
    found = recording.against(job, kept, second.model, text)
    assert kept.whole
    assert kept.weight == pytest.approx(1, abs=1e-5)
    assert kept.kept == wanted.reference.tokens == found.candidate.tokens
    assert found.mean_kl == pytest.approx(wanted.mean_kl, rel=1e-4)
    assert found.max_kl == pytest.approx(wanted.max_kl, rel=1e-4)
    assert wanted.mean_kl > 0.01
    assert found.perplexity_increase == pytest.approx(wanted.perplexity_increase, abs=1e-5)
    told = measure(job, first.model, text.dataset, text.limits)
    assert kept.measured.loss == pytest.approx(told.loss, rel=1e-5)
    same = recording.against(job, kept, first.model, text)
    assert same.max_kl < 1e-6


def test_of_the_likeliest_tokens_it_is_no_more_and_nearly_that(
    job: Job,
    two: tuple[Loaded, Loaded],
    text: HeldOut,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = two
    wanted = compare(job, first.model, second.model, text)
    monkeypatch.setattr(recording, "TOP", 300)
    kept = recording.record(job, first.model, text, tmp_path / "kept")
    assert (kept.top, kept.whole) == (300, False)
    assert 0.5 < kept.weight < 1
    found = recording.against(job, kept, second.model, text)
    assert 0.9 * wanted.mean_kl < found.mean_kl <= wanted.mean_kl
    assert found.candidate.loss == pytest.approx(wanted.candidate.loss, rel=1e-5)
    assert recording.against(job, kept, first.model, text).max_kl < 1e-5


def test_only_so_many_tokens_are_kept(
    job: Job,
    two: tuple[Loaded, Loaded],
    text: HeldOut,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = two
    monkeypatch.setattr(recording, "MOST", 300)
    kept = recording.record(job, first.model, text, tmp_path / "kept")
    assert kept.kept == 300 < kept.measured.tokens
    assert (tmp_path / "kept" / "ids.bin").stat().st_size == 300 * kept.top * 4
    found = recording.against(job, kept, second.model, text)
    assert found.candidate.tokens == kept.measured.tokens
    assert found.mean_kl > 0


def test_a_model_that_says_nan_differs_from_everything(
    job: Job, two: tuple[Loaded, Loaded], text: HeldOut, tmp_path: Path
) -> None:
    kept = recording.record(job, two[0].model, text, tmp_path / "kept")

    def broken(tokens: mx.array) -> mx.array:
        return mx.full((*tokens.shape, 512), mx.nan)

    found = recording.against(job, kept, broken, text)
    assert not found.mean_kl <= 1e300
    assert not found.perplexity_increase <= 1e300


class _Cancelled(Orders):
    """Orders of a job that is to end."""

    @property
    def cancelled(self) -> bool:
        return True


def test_a_cancel_order_ends_it(
    job: Job, two: tuple[Loaded, Loaded], text: HeldOut, tmp_path: Path
) -> None:
    ordered = Job(job.task, job.report, _Cancelled(StringIO()))
    with pytest.raises(Cancelled):
        recording.record(ordered, two[0].model, text, tmp_path / "kept")
