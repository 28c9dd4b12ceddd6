"""What `--method auto` would do: its candidates, each opened, checked and measured as a dry run of one adaptation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from taskmerge.errors import Mismatch
from taskmerge.workflows.adapt_dry_run import dry_run
from taskmerge.workflows.adapt_request import AdaptRequest
from taskmerge.workflows.adapted import AdaptRunning
from taskmerge.workflows.auto import auto_place, candidate_folder


@dataclass(frozen=True)
class Candidate:
    """One candidate: its iterations and updates, and how long it would take; or why it would be left out."""

    name: str
    method: str
    iterations: int | None
    updates: int | None = None
    seconds: float | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class AutoPlan:
    """The candidates in order, the budget that those whose encoder learns share, and where the best would go."""

    output: str
    budget: int
    candidates: tuple[Candidate, ...]

    @property
    def seconds(self) -> float:
        """Seconds of all candidates, scoring left out."""
        return sum(one.seconds or 0.0 for one in self.candidates)

    def to_dict(self) -> dict[str, object]:
        """The same as plain values, for --json."""
        return {**asdict(self), "method": "auto", "total_seconds": self.seconds}


def plan_auto(asked: Mapping[str, AdaptRequest], running: AdaptRunning, budget: int) -> AutoPlan:
    """Opens and checks what every candidate would, and measures two updates of each; writes nothing that stays.

    Raises what `adapt_auto` would raise, but for what is in the way of its output.
    """
    place = auto_place(running)
    candidates = tuple(_planned(name, request, running) for name, request in asked.items())
    return AutoPlan(str(place), budget, candidates)


def _planned(name: str, asked: AdaptRequest, running: AdaptRunning) -> Candidate:
    plain = Candidate(name, asked.spec.method, asked.parts.iterations)
    running.doing(f"trying {name}")
    try:
        found = dry_run(asked, replace(running, output=candidate_folder(auto_place(running), name)))
    except Mismatch as error:
        return replace(plain, left_out=error.what)
    return replace(plain, updates=found.updates, seconds=found.total)
