"""Forward and backward in shards: the same bits for any number of workers, sums in order, few under way at a time."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adaptation_cases import CLASSES, TASKS, Assembled, assembled, clip_suite, text_suite
from naive import is_kept
from torch import Tensor

from taskmerge.adaptation.passes import Gradients, Setting, backward, forward, passes
from taskmerge.adaptation.summing import Summing
from taskmerge.adaptation.tasks import SHARD, TaskSide, inputs_at
from taskmerge.numerics.lapack import settle_thread
from taskmerge.specs.suite import Suite

BATCH = 2 * SHARD + 3


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return clip_suite(tmp_path_factory.mktemp("passes"))


@pytest.fixture
def found(suite: Suite, tmp_path: Path) -> Assembled:
    """A run whose encoder, heads and adapters all learn."""
    options = {"with_": "surgery", "on": "outputs", "filter": "code", "batch_size": BATCH}
    found = assembled(suite, tmp_path / "out", method="tint_plus", **options)
    found.run.form()
    return found


@contextmanager
def threads(setting: Setting, count: int) -> Iterator[Setting]:
    with ThreadPoolExecutor(count, initializer=settle_thread) as pool:
        yield replace(setting, pool=pool, workers=count)


def batches(found: Assembled) -> list[tuple[TaskSide, Tensor]]:
    return [(side, side.batch(0, 0, BATCH)) for side in found.run.sides]


def equal(one: Gradients, other: Gradients) -> bool:
    """Bit for bit."""
    return all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        for mine, theirs in [(one.shared, other.shared), *((one.own[task], other.own[task]) for task in TASKS)]
    )


# --- workers ---------------------------------------------------------------------------------------------------


def test_workers_change_no_bit(found: Assembled) -> None:
    setting = found.run.setting
    plain, told = passes(setting, batches(found), 0)
    assert plain.shared
    assert all(plain.own[task] for task in TASKS)
    for count in (1, 2, 3, 5, 16):
        with threads(setting, count) as spread:
            for _ in range(2):
                gradients, records = passes(spread, batches(found), 0)
                assert equal(gradients, plain)
                assert records == told


def test_gradients_are_the_sum_over_shards_in_their_order(found: Assembled) -> None:
    """Of the mean over the batch: every shard's sum is divided by what is kept of the whole batch."""
    setting, (side, batch) = found.run.setting, batches(found)[0]
    shards = [forward(setting, side, places, 0) for places in side.shards(batch)]
    assert [len(shard.loss) for shard in shards] == [SHARD, SHARD, 3]
    kept = sum(int(shard.kept.sum()) for shard in shards)
    total: dict[str, Tensor] = {}
    for shard in shards:
        with Summing(setting.shared) as alone:
            backward(shard, kept, alone, 0)
        total = {name: total[name] + grad if name in total else grad for name, grad in alone.sums.items()}
    gradients, records = passes(setting, [(side, batch)], 0)
    assert gradients.shared.keys() == total.keys()
    assert all(torch.equal(gradients.shared[name], total[name]) for name in total)
    loss = sum(float(shard.loss.detach()[shard.kept].sum()) for shard in shards) / kept
    assert records[side.name].loss == loss
    assert records[side.name].kept == kept / BATCH


def test_no_more_is_under_way_than_there_are_workers(found: Assembled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of shards are held by the group of tasks that keeps all workers busy, not by all tasks."""
    lock, now, peaks, alive = threading.Lock(), [0], [0], [0]
    outputs = TaskSide.outputs

    def counted(self: TaskSide, *given: Tensor) -> tuple[Tensor, Tensor]:
        with lock:
            now[0] += 1
            peaks.append(now[0])
        time.sleep(0.005)
        made = outputs(self, *given)
        with lock:
            now[0] -= 1
            alive[0] += 1
        return made

    monkeypatch.setattr(TaskSide, "outputs", counted)
    before = {}

    def noted(self: Gradients, task: str, *given: dict[str, Tensor]) -> None:
        before.setdefault(task, alive[0])

    monkeypatch.setattr(Gradients, "add", noted)
    with threads(found.run.setting, 2) as spread:
        passes(spread, batches(found), 0)
    assert max(peaks) == 2
    assert before == {"cars": 3, "digits": 6, "signs": 9}  # a task's gradients are there before the next goes forward


def test_small_tasks_go_forward_together(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tasks of one shard each keep three workers busy."""
    found = assembled(suite, tmp_path / "out", method="adamerging", batch_size=4)
    found.run.form()
    forwards: list[str] = []
    side_outputs = TaskSide.outputs

    def noted(self: TaskSide, *given: Tensor) -> tuple[Tensor, Tensor]:
        forwards.append(self.name)
        return side_outputs(self, *given)

    monkeypatch.setattr(TaskSide, "outputs", noted)
    seen: list[int] = []
    monkeypatch.setattr(Gradients, "add", lambda self, *given: seen.append(len(forwards)))
    with threads(found.run.setting, 3) as spread:
        passes(spread, [(side, side.batch(0, 0, 4)) for side in found.run.sides], 0)
    assert seen == [3, 3, 3]


def test_an_error_of_a_worker_is_raised(found: Assembled, monkeypatch: pytest.MonkeyPatch) -> None:
    class WrongError(Exception):
        pass

    def wrong(self: TaskSide, *given: Tensor) -> tuple[Tensor, Tensor]:
        raise WrongError

    monkeypatch.setattr(TaskSide, "outputs", wrong)
    with threads(found.run.setting, 2) as spread, pytest.raises(WrongError):
        passes(spread, batches(found), 0)


# --- what is told ----------------------------------------------------------------------------------------------


def test_what_is_told_of_a_batch(found: Assembled) -> None:
    """Items, share kept, agreement with the expert, mean entropy, the largest share of one predicted class."""
    _, told = passes(found.run.setting, batches(found), 0)
    for side, batch in batches(found):
        with torch.no_grad():
            features = side.features(batch, torch.device("cpu"))
            _, outputs = side.outputs(features)
        expert = side.teacher.outputs[batch]
        classes, record = outputs.argmax(1), told[side.name]
        probabilities = outputs.softmax(1)
        assert record.items == BATCH
        assert record.agreement == pytest.approx(float((classes == expert.argmax(1)).double().mean()))
        assert record.entropy == pytest.approx(float(-(probabilities * probabilities.log()).sum(1).mean()), abs=1e-5)
        counts = torch.bincount(classes, minlength=CLASSES[side.name])
        assert record.largest_class == pytest.approx(float(counts.max()) / BATCH)
        kept = [is_kept("code", ours, theirs) for ours, theirs in zip(outputs, expert, strict=True)]
        assert record.kept == pytest.approx(sum(kept) / BATCH)


def test_frozen_features_are_one_shard(suite: Suite, tmp_path: Path) -> None:
    """There is no encoder to run."""
    found = assembled(suite, tmp_path / "out", method="surgery", batch_size=BATCH)
    side = found.run.sides[0]
    assert side.frozen is not None
    assert [len(places) for places in side.shards(side.batch(0, 0, BATCH))] == [BATCH]
    gradients, _ = passes(found.run.setting, batches(found), 0)
    assert not gradients.shared
    assert gradients.own["cars"].keys() == {"adapter/down", "adapter/up"}


def test_texts_of_a_shard_are_cut_to_their_longest(tmp_path: Path) -> None:
    found = assembled(text_suite(tmp_path / "suite", "bert"), tmp_path / "out", method="adamerging")
    inputs = found.run.sides[0].items.inputs
    lengths = inputs["attention_mask"].sum(1)
    assert lengths.unique().numel() > 2
    for place, length in enumerate(lengths.tolist()):
        cut = inputs_at(inputs, torch.tensor([place]), torch.device("cpu"))
        assert all(tensor.shape == (1, length) for tensor in cut.values())
    both = inputs_at(inputs, torch.tensor([int(lengths.argmin()), int(lengths.argmax())]), torch.device("cpu"))
    assert both["input_ids"].shape == (2, int(lengths.max()))


def test_bfloat16_is_for_the_encoder_and_losses_are_in_full_precision(suite: Suite, tmp_path: Path) -> None:
    """Gradients have the parameters' type, and are close to those of full precision."""
    grads = []
    for amp in (None, "bf16"):
        found = assembled(suite, tmp_path / "out", method="tint", batch_size=BATCH, amp=amp, updates="joint")
        found.run.form()
        side, batch = batches(found)[0]
        shard = forward(found.run.setting, side, batch, 0)
        assert shard.loss.dtype == torch.float32
        gradients, _ = passes(found.run.setting, batches(found), 0)
        assert all(grad.dtype == torch.float32 for grad in gradients.shared.values())
        grads.append(torch.cat([grad.flatten() for _, grad in sorted(gradients.shared.items())]))
    assert not torch.equal(*grads)
    assert float(torch.cosine_similarity(*grads, dim=0)) > 0.99
