"""What was recovered as values, and as the document that `taskmerge schema recover` describes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from taskmerge.recovery.claims import Claim
from taskmerge.recovery.judge import Pointer, TensorFit, Verdict, of_rounding
from taskmerge.recovery.solve import Fit, Form
from taskmerge.types import TensorClass
from taskmerge.version import __version__

KIND, SCHEMA_VERSION = "recover", 1


@dataclass(frozen=True, slots=True)
class ClassFit:
    """All tensors of a class with one set of coefficients; `linear` of them leave rounding alone by themselves."""

    tensors: int
    parameters: int
    linear: int
    fit: Fit


@dataclass(frozen=True)
class Recovery:
    """Which experts, with which coefficients, make a checkpoint, as far as numbers tell.

    `fits` are of the whole model, by form, of which `form` is the simplest that leaves no more than rounding; `classes`
    and `tensors` are least squares by themselves. `rounded_to` is the type that what is left was judged by (`mixed`
    where tensors have several). `still` is the share of entries that are as in the base although an expert clearly
    changes them (None without a base), `foreign` are tensors that no expert changes and the checkpoint does. `claim` is
    what the checkpoint's own record says, None where it has none.
    """

    merged: str
    base: str | None
    experts: Mapping[str, str]
    verdict: Verdict
    pointers: tuple[Pointer, ...]
    form: Form
    fits: Mapping[Form, Fit]
    classes: Mapping[TensorClass, ClassFit]
    tensors: tuple[TensorFit, ...]
    rounded_to: str
    still: float | None
    foreign: tuple[str, ...]
    left_out: int
    claim: Claim | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def coefficients(self) -> dict[str, float]:
        """By expert, in the simplest form that leaves no more than rounding (else least squares)."""
        return dict(zip(self.experts, self.fits[self.form].coefficients, strict=True))

    @property
    def parameters(self) -> int:
        """How many numbers were compared."""
        return sum(one.numel for one in self.tensors)

    def to_dict(self) -> dict[str, object]:
        """The result as plain values, for --json: `taskmerge schema recover`."""
        return {
            "report": KIND,
            "schema_version": SCHEMA_VERSION,
            "version": __version__,
            "merged": self.merged,
            "base": self.base,
            "experts": dict(self.experts),
            "verdict": self.verdict,
            "pointers": list(self.pointers),
            "form": self.form,
            "fits": {form: self._fit(one) for form, one in self.fits.items()},
            "classes": {kind: self._class(one) for kind, one in self.classes.items()},
            "tensors": [self._tensor(one) for one in self.tensors],
            "rounded_to": self.rounded_to,
            "still": self.still,
            "foreign": list(self.foreign),
            "compared": {"tensors": len(self.tensors), "parameters": self.parameters, "left_out": self.left_out},
            "claim": None if self.claim is None else asdict(self.claim),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }

    def _fit(self, fit: Fit) -> dict[str, object]:
        names = list(self.experts)
        return {
            "coefficients": dict(zip(names, fit.coefficients, strict=True)),
            "errors": dict(zip(names, fit.errors, strict=True)) if fit.errors else None,
            "base": fit.base,
            "unknown": [[names[place] for place in group] for group in fit.unknown],
            "residual": fit.residual,
            "beyond_rounding": fit.beyond,
            "times_rounding": fit.ratio,
            "of_rounding": of_rounding(fit),
            "drowned": fit.drowned,
        }

    def _class(self, one: ClassFit) -> dict[str, object]:
        return {"tensors": one.tensors, "parameters": one.parameters, "linear": one.linear, **self._fit(one.fit)}

    def _tensor(self, one: TensorFit) -> dict[str, object]:
        return {"name": one.name, "class": one.kind, "parameters": one.numel, **self._fit(one.fit)}


@cache
def schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of what `recover` finds."""
    text = (files("taskmerge.recovery") / "recover.schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document
