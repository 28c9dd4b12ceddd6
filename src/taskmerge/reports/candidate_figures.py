"""The plot of what `adapt --method auto` tried: agreement on held-out items, and what labels say afterwards."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from taskmerge.reports.charting import STEP, WIDTH, Row, data, listed_values, percent, shown_names, spec_of
from taskmerge.reports.figures import Figure

AGREEMENT, SCORE = "agreement with the experts", "average score, with labels"


def candidate_figures(document: Mapping[str, Any]) -> list[Figure]:
    """Two marks a candidate; none where nothing was chosen among several."""
    chosen = document.get("chosen")
    if chosen is None or len(chosen["tried"]) < 2:
        return []
    names = shown_names(one["name"] for one in chosen["tried"])
    kept = f"{names[chosen['candidate']]} (kept)"
    names = {name: kept if name == chosen["candidate"] else text for name, text in names.items()}
    rows = [
        {"candidate": names[one["name"]], "what": what, "value": float(one[key])}
        for one in chosen["tried"] for what, key in ((AGREEMENT, "agreement"), (SCORE, "score"))
        if one[key] is not None
    ]  # fmt: skip
    held = sum(int(task["held_out"]) for task in document["tasks"])
    regret = chosen["regret"]
    after = "" if regret is None else f" By labels the choice is {percent(regret)} below the best of them."
    told = [
        (names[one["name"]], f"agreement {percent(one['agreement'])}"
         + ("" if one["score"] is None else f", score {percent(one['score'])}"))
        for one in chosen["tried"]
    ]  # fmt: skip
    return [
        Figure(
            name="candidates",
            title="What was tried",
            caption=f"Agreement with the experts on {held:,} held-out unlabelled items, which the choice is by, "
            "and the average score with labels, which was looked at afterwards; means over the tasks, drawn without "
            f"intervals.{after}",
            alternative=f"{listed_values(told)}.{after}",
            spec=_spec(rows, list(names.values())),
        )
    ]


def _spec(rows: Sequence[Row], names: list[str]) -> Mapping[str, object]:
    kinds, legend = [AGREEMENT, SCORE], alt.Legend(orient="bottom", labelLimit=240)  # one for colour and shape
    marks = alt.Chart(data(rows)).mark_point(size=60).encode(
        x=alt.X("value:Q", title="share of items", axis=alt.Axis(format=".0%"), scale=alt.Scale(zero=False)),
        y=alt.Y("candidate:N", sort=names, title=None, axis=alt.Axis(grid=True)),
        color=alt.Color("what:N", title=None, scale=alt.Scale(domain=kinds), legend=legend),
        shape=alt.Shape("what:N", title=None, scale=alt.Scale(domain=kinds, range=["circle", "square"]), legend=legend),
        tooltip=[alt.Tooltip("candidate:N", title="candidate"), alt.Tooltip("what:N", title="what"),
                 alt.Tooltip("value:Q", title="value", format=".1%")],
    )  # fmt: skip
    return spec_of(marks.properties(width=WIDTH, height=max(60, (STEP + 6) * len(names))))
