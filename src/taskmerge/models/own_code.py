"""Code that comes with a model, or that a model names on a hub, is never run; what needs it is refused by name.

transformers asks on stdout whether to run such code, and takes a `y` from stdin, unless it is told
`trust_remote_code=False`; kernels that a configuration asks for it fetches unasked.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taskmerge.documents import read_object
from taskmerge.errors import BadFile
from taskmerge.models.config_values import entries

IMPLEMENTATIONS = {
    "_attn_implementation": (None, "eager", "sdpa"),
    "_experts_implementation": (None, "eager", "grouped_mm", "batched_mm"),
}
"""What a configuration may choose between: torch's own. None leaves it to transformers, which takes torch's too."""


def code_of(file: Path, kind: str) -> str | None:
    """The code of its own that a JSON configuration names for one of transformers' classes (`AutoConfig`), if any."""
    named = _document(file).get("auto_map")
    if isinstance(named, dict):
        named = named.get(kind)
    codes = [code for code in _leaves(named) if isinstance(code, str)]
    return codes[0] if codes else None


def needs_code(file: Path, code: str) -> BadFile:
    """The error for a configuration that means nothing without code of its own."""
    return BadFile(
        f"needs code of its own (`{code}`), which is never run", where=str(file),
        hint="use a model that transformers itself has, or take `auto_map` out if it works without",
    )  # fmt: skip


def check_kernels(file: Path) -> None:
    """Raises `BadFile` for a configuration whose attention, or experts, shall be computed by a kernel of a hub."""
    for key, value in entries(_document(file)):
        kernels = [name for name in _leaves(value) if isinstance(name, str) and "/" in name]
        if key.removeprefix("_") in ("attn_implementation", "experts_implementation") and kernels:
            raise BadFile(
                f"asks for the kernel `{kernels[0]}` of a hub, which is never run", where=f"{file}: `{key}`",
                hint="take the entry out: torch's own computes the same",
            )  # fmt: skip


def use_own_implementations(config: Any) -> None:
    """Has a configuration and its parts computed by torch alone, whatever they ask for; what is torch's stays."""
    for name, own in IMPLEMENTATIONS.items():
        if getattr(config, name, None) not in own:
            setattr(config, name, None)
    for key in getattr(config, "sub_configs", {}):
        if getattr(config, key, None) is not None:
            use_own_implementations(getattr(config, key))


def _document(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, which transformers then complains about."""
    try:
        return read_object(file, constants=True)
    except BadFile:
        return {}


def _leaves(value: object) -> Iterator[object]:
    """A value, or those in it where it is a map or a list."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        yield value
        return
    for part in inner:
        yield from _leaves(part)
