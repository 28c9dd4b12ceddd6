"""Plots of how an adaptation went: losses, agreement, flips and coefficients over updates, and learning curves."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import altair as alt

from taskmerge.evaluation.intervals import Interval
from taskmerge.reports.charting import COLUMNS, PANEL, WIDTH, data, listed_values, percent, shown_names, spec_of
from taskmerge.reports.figures import Figure
from taskmerge.reports.trace_bins import Curve, Point, Trace

Curves = Mapping[str, Curve]
Bounds = Callable[[str, float], Interval | None]
"""The 95% interval of a task's value, where one is known."""
SHARE = alt.Axis(format="%")


def trace_figures(
    trace: Trace, *, chosen: int | None = None, held_out: Bounds = lambda task, value: None,
    watched: Bounds = lambda task, value: None, shares: bool = True,
) -> list[Figure]:  # fmt: skip
    """Every plot that a trace has something for; `chosen` is the update whose values were kept, if one was chosen, and
    `shares` whether the scores that were watched are told in percent."""
    figures = [
        _losses(trace), _agreement(trace), _filtered(trace), _flips(trace), _coefficients(trace),
        _held_out(trace, chosen, held_out), _watched(trace, watched, shares=shares),
    ]  # fmt: skip
    return [figure for figure in figures if figure is not None]


# --- small panels, one a task ----------------------------------------------------------------------------------


def panels(
    curves: Curves, title: str, *, share: bool, beside: tuple[str, Curves] | None = None,
    bounds: Bounds | None = None, rule: int | None = None,
) -> Mapping[str, object]:  # fmt: skip
    """A small panel for each task with its curve over the updates, all on the same scales; `beside` it a second one
    under a name, drawn as a line alone."""
    tasks = shown_names(curves)
    rows = [
        {"task": tasks[task], "what": name, "update": point.update, "value": point.value,
         **_bounded(bounds, task, point)}
        for name, of_tasks in ((title, curves), *([beside] if beside else [])) for task, curve in of_tasks.items()
        for point in curve
    ]  # fmt: skip
    axis = SHARE if share else alt.Axis()
    base = alt.Chart().encode(
        x=alt.X("update:Q", title="update", axis=alt.Axis(tickCount=3)), y=alt.Y("value:Q", title=title, axis=axis)
    )
    kinds = list(dict.fromkeys(str(row["what"]) for row in rows))
    legend = alt.Legend(orient="bottom") if beside else None
    colour = alt.Color("what:N", title=None, sort=kinds, legend=legend)
    first = base.transform_filter(alt.FieldEqualPredicate(field="what", equal=title))
    tooltip = [alt.Tooltip("task:N", title="task"), alt.Tooltip("update:Q", title="update", format=".4~g"),
               alt.Tooltip("value:Q", title=title, format=".1%" if share else ".4~g")]  # fmt: skip
    layers = [base.mark_line(aria=False).encode(colour), first.mark_point(size=14).encode(colour, tooltip=tooltip)]
    if any("low" in row for row in rows):
        band = first.mark_area(opacity=0.2, aria=False)
        layers.insert(0, band.encode(colour, y=alt.Y("low:Q", title=title, axis=axis), y2="high:Q"))
    if rule is not None:
        layers.append(alt.Chart().mark_rule(strokeDash=[3, 3], aria=False).encode(x=alt.datum(rule)))
    chart = alt.layer(*layers, data=data(rows)).properties(width=PANEL, height=90)
    facet = alt.Facet("task:N", sort=list(tasks.values()), title=None, header=alt.Header(labelLimit=PANEL))
    return spec_of(chart.facet(facet=facet, columns=min(COLUMNS, len(tasks))))


def _bounded(bounds: Bounds | None, task: str, point: Point) -> dict[str, object]:
    interval = None if bounds is None else bounds(task, point.value)
    return {} if interval is None else {"low": interval[0], "high": interval[1]}


def ends(curves: Curves, told: Callable[[float], str]) -> str:
    """First and last value of every task's curve, in words."""
    return listed_values(
        (task, f"{told(curve[0].value)} → {told(curve[-1].value)}") for task, curve in curves.items() if curve
    )


def _windows(trace: Trace) -> str:
    """What a point stands for."""
    if trace.window == 1:
        return f"every one of {trace.updates:,} updates"
    return f"means over windows of {trace.window} of {trace.updates:,} updates"


def _number(value: float) -> str:
    return f"{value:.3g}"


# --- losses and agreement --------------------------------------------------------------------------------------


def _losses(trace: Trace) -> Figure | None:
    """The loss of every task; with its entropy where that is another number."""
    losses, entropy = trace.of_tasks["loss"], trace.of_tasks["entropy"]
    if not losses:
        return None
    beside = ("entropy", entropy) if entropy and not _same(losses, entropy) else None
    unit = "the loss is entropy, in nats" if _same(losses, entropy) else "entropy of predictions in nats beside it"
    return Figure(
        name="trace-losses",
        title="Losses over updates",
        caption=f"Mean loss of each task's batches ({unit if entropy else 'in its own unit'}); {_windows(trace)}. "
        "Batches are the unlabelled items that were learnt from; no interval is known.",
        alternative=f"Loss from first to last window. {ends(losses, _number)}."
        + (f" Entropy in nats: {ends(entropy, _number)}." if beside else ""),
        spec=panels(losses, "loss", share=False, beside=beside),
    )


def _same(one: Curves, other: Curves) -> bool:
    """Whether two sets of curves are the same numbers."""
    return one.keys() == other.keys() and all(
        len(one[task]) == len(other[task])
        and all(abs(a.value - b.value) <= 1e-6 * abs(a.value) for a, b in zip(one[task], other[task], strict=True))
        for task in one
    )


def _agreement(trace: Trace) -> Figure | None:
    """Agreement with the expert, and the share of the commonest class: what shows a collapse without labels."""
    agreement, largest = trace.of_tasks["agreement"], trace.of_tasks["largest_class"]
    if not agreement:
        return None
    return Figure(
        name="trace-agreement",
        title="Agreement with the experts over updates",
        caption="Share of each batch's items that get the expert's class, and share of items predicted to be of the "
        f"commonest class (near 100%: predictions have collapsed); {_windows(trace)}. No label is used.",
        alternative=f"Agreement from first to last window. {ends(agreement, percent)}."
        + (f" Share of the commonest class: {ends(largest, percent)}." if largest else ""),
        spec=panels(agreement, "agreement", share=True, beside=("commonest class", largest) if largest else None),
    )


def _filtered(trace: Trace) -> Figure | None:
    """The share of items that a filter kept, where one left some out."""
    kept = trace.of_tasks["kept"]
    if all(point.value == 1 for curve in kept.values() for point in curve):
        return None
    return Figure(
        name="trace-filter",
        title="What the filter keeps",
        caption=f"Share of each batch's items that the filter keeps for learning; {_windows(trace)}.",
        alternative=f"Share kept from first to last window. {ends(kept, percent)}.",
        spec=panels(kept, "items kept", share=True),
    )


# --- masks and coefficients ------------------------------------------------------------------------------------


def _flips(trace: Trace) -> Figure | None:
    """Bars of flips above the line of the kept share."""
    if not trace.flips:
        return None
    domain = alt.Scale(domain=[0, trace.updates], nice=False)
    width = max(1.0, 0.8 * WIDTH / len(trace.flips))
    bars = alt.Chart(data(_rows(trace.flips))).mark_bar(size=width).encode(
        x=alt.X("update:Q", title=None, scale=domain), y=alt.Y("value:Q", title="bits flipped"),
        tooltip=[alt.Tooltip("update:Q", title="update"), alt.Tooltip("value:Q", title="bits flipped", format=",")],
    ).properties(width=WIDTH, height=110)  # fmt: skip
    line = alt.Chart(data(_rows(trace.components))).mark_line(point=True).encode(
        x=alt.X("update:Q", title="update", scale=domain),
        y=alt.Y("value:Q", title="kept", axis=SHARE, scale=alt.Scale(zero=False)),
        tooltip=[alt.Tooltip("update:Q", title="update"), alt.Tooltip("value:Q", title="kept", format=".1%")],
    ).properties(width=WIDTH, height=110)  # fmt: skip
    total, first, last = sum(point.value for point in trace.flips), trace.components[:1], trace.components[-1:]
    told = f" The kept share goes from {percent(first[0].value)} to {percent(last[0].value)}." if first else ""
    most = max(trace.flips, key=lambda point: point.value)
    return Figure(
        name="trace-flips",
        title="Flips of mask bits over updates",
        caption=f"Above: bits of the masks that changed, summed over windows of {trace.window} of {trace.updates:,} "
        "updates. Below: share of components, or entries, that the masks keep.",
        alternative=f"{total:,.0f} flips in {trace.updates:,} updates, most of them ({most.value:,.0f} in a window) "
        f"around update {most.update:.0f}.{told}",
        spec=spec_of(alt.vconcat(bars, line).resolve_scale(x="shared") if trace.components else bars),
    )


def _coefficients(trace: Trace) -> Figure | None:
    """The mean coefficient within its range; below it the share of zeros, where there are any."""
    curves = trace.coefficients
    if not {"mean", "low", "high"} <= curves.keys() or len(curves["mean"]) < 2:
        return None
    rows = [
        {"update": point.update, "mean": point.value, "low": low.value, "high": high.value}
        for point, low, high in zip(curves["mean"], curves["low"], curves["high"], strict=True)
    ]
    base = alt.Chart(data(rows)).encode(x=alt.X("update:Q", title="update", axis=alt.Axis(tickMinStep=1)))
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title="λ"), y2="high:Q")
    line = base.mark_line(point=True).encode(
        y=alt.Y("mean:Q", title="λ"),
        tooltip=[alt.Tooltip(f"{name}:Q", title=title) for name, title in
                 (("update", "update"), ("mean", "mean"), ("low", "smallest"), ("high", "largest"))],
    )  # fmt: skip
    chart = alt.layer(band, line).properties(width=WIDTH, height=150)
    spec = spec_of(chart)
    zeros = curves.get("zero", ())
    if any(point.value for point in zeros):
        share = alt.Chart(data(_rows(zeros))).mark_line(point=True).encode(
            x=alt.X("update:Q", title="update"), y=alt.Y("value:Q", title="share of zeros", axis=SHARE),
            tooltip=[alt.Tooltip("update:Q", title="update"), alt.Tooltip("value:Q", title="zeros", format=".1%")],
        ).properties(width=WIDTH, height=90)  # fmt: skip
        spec = spec_of(alt.vconcat(chart, share).resolve_scale(x="shared"))
    first, last = rows[0], rows[-1]
    return Figure(
        name="trace-coefficients",
        title="Coefficients over updates",
        caption=f"Mean of all coefficients λ (no unit), in a band from the smallest to the largest; {_windows(trace)}."
        + (" Below: share of them that are nearer to zero than 1e-05." if any(p.value for p in zeros) else ""),
        alternative=f"The mean goes from {first['mean']:.3g} to {last['mean']:.3g}, the range from "
        f"{first['low']:.3g} … {first['high']:.3g} to {last['low']:.3g} … {last['high']:.3g}; "
        f"at the end {percent(zeros[-1].value if zeros else 0.0)} are zero.",
        spec=spec,
    )


def _rows(curve: Iterable[Point]) -> Sequence[Mapping[str, object]]:
    return [{"update": point.update, "value": point.value} for point in curve]


# --- learning curves -------------------------------------------------------------------------------------------


def _held_out(trace: Trace, chosen: int | None, bounds: Bounds) -> Figure | None:
    """Agreement on items that nothing was learnt from."""
    curves = trace.held_out
    if not curves:
        return None
    kept = "" if chosen is None else f" The dashed line is update {chosen}, whose values were kept."
    return Figure(
        name="curves-held-out",
        title="Learning curves without labels",
        caption="Agreement with the expert on unlabelled items that nothing was learnt from, at every look; bands are "
        f"95% Wilson intervals where the agreement is a share of items.{kept}",
        alternative=f"Agreement at the first and the last look. {ends(curves, percent)}.{kept}",
        spec=panels(curves, "agreement", share=True, bounds=bounds, rule=chosen),
    )


def _watched(trace: Trace, bounds: Bounds, *, shares: bool) -> Figure | None:
    """Scores with labels, a diagnostic."""
    curves = trace.watched
    if not curves:
        return None
    return Figure(
        name="curves-scores",
        title=f"Learning curves with labels (split {trace.split})",
        caption=f"Score of the model as it was at each look, on the labelled split `{trace.split}`: a diagnostic that "
        "no choice was made by; bands are 95% Wilson intervals where the score is an accuracy.",
        alternative=f"Score at the first and the last look. {ends(curves, percent if shares else _number)}.",
        spec=panels(curves, "score", share=shares, bounds=bounds),
    )
