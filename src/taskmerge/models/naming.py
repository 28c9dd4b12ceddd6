"""How files may name the tensors of a module."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass


def _same(name: str) -> str:
    return name


def _none(name: str) -> bool:
    return False


@dataclass(frozen=True)
class Naming:
    """The ways in which a file may name a module's tensors.

    `wrappers` are prefixes that every name of a file may carry (`module.`). Each of `forms` is a pair: the prefix in
    the file, and the one that stands for it in the module; the form that finds the most tensors is taken, the first of
    equals. `renamed` turns a library's former name into today's, and `elsewhere` says whether a name (without wrapper)
    belongs to a part of the library's full model that the features do not need.
    """

    wrappers: tuple[str, ...] = ()
    forms: tuple[tuple[str, str], ...] = (("", ""),)
    renamed: Callable[[str], str] = _same
    elsewhere: Callable[[str], bool] = _none

    def wrapper(self, names: Collection[str]) -> str:
        """The wrapper that all names carry, or nothing."""
        return next((one for one in self.wrappers if names and all(name.startswith(one) for name in names)), "")

    def found(self, wanted: Collection[str], names: Collection[str]) -> dict[str, str]:
        """Module's name -> file's name, for every wanted tensor that the file has."""
        found = self._best(wanted, names, _same)
        if len(found) < min(len(wanted), len(names)):  # asking a library for former names costs time
            former = self._best(wanted, names, self.renamed)
            found = former if len(former) > len(found) else found
        return found

    def strangers(self, found: Mapping[str, str], names: Collection[str]) -> list[str]:
        """The file's names that were not found in the module and belong to no other part of the full model."""
        outer, taken = self.wrapper(names), set(found.values())
        rest = (name for name in names if name not in taken)
        return [name for name in rest if not self.elsewhere(name.removeprefix(outer))]

    def _best(self, wanted: Collection[str], names: Collection[str], renamed: Callable[[str], str]) -> dict[str, str]:
        outer = self.wrapper(names)
        best: dict[str, str] = {}
        for file_prefix, module_prefix in self.forms:
            form: dict[str, str] = {}
            for name in names:
                if name.startswith(outer + file_prefix):
                    own = module_prefix + name.removeprefix(outer + file_prefix)
                    own = own if own in wanted else renamed(own)
                    if own in wanted:
                        form.setdefault(own, name)
            best = form if len(form) > len(best) else best
        return best
