"""How files may name the tensors of a module."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from taskmerge.checkpoint.dialects import plain, unwrapped
from taskmerge.specs.renaming import Renaming, renamed


def _same(name: str) -> str:
    return name


def _none(name: str) -> bool:
    return False


@dataclass(frozen=True)
class Naming:
    """The ways in which a file may name a module's tensors, beside those in which any file may (`dialects`).

    `renamings` are the user's, and come first. `wrappers` are prefixes that every name of a file may carry (`clip.`).
    Each of `forms` is a pair: the prefix in the file, and the one that stands for it in the module; the form that finds
    the most tensors is taken, the first of equals. `renamed` turns a library's former name into today's, and
    `elsewhere` says whether a plain name belongs to a part of the library's full model that the features do not need.
    """

    wrappers: tuple[str, ...] = ()
    forms: tuple[tuple[str, str], ...] = (("", ""),)
    renamed: Callable[[str], str] = _same
    elsewhere: Callable[[str], bool] = _none
    renamings: tuple[Renaming, ...] = ()

    def plain(self, names: Collection[str]) -> dict[str, str]:
        """Plain name -> file's name: as the user's renamings say, without the wrapper that all names carry and those
        inside names; names that would be one stay as they are."""
        said = {name: renamed(name, self.renamings) for name in names}
        for read in (unwrapped, plain):
            said = self._unless_equal(said, read)
        outer = next((one for one in self.wrappers if said and all(new.startswith(one) for new in said.values())), "")
        return {new.removeprefix(outer): name for name, new in said.items()}

    def found(self, wanted: Collection[str], names: Collection[str]) -> dict[str, str]:
        """Module's name -> file's name, for every wanted tensor that the file has."""
        own = self.plain(names)
        found = self._best(wanted, own, _same)
        if len(found) < min(len(wanted), len(names)):  # asking a library for former names costs time
            former = self._best(wanted, own, self.renamed)
            found = former if len(former) > len(found) else found
        return {name: own[bare] for name, bare in found.items()}

    def in_module(self, wanted: Collection[str], names: Collection[str]) -> dict[str, str]:
        """Name as the module's own would be -> file's name, of all that a file has: by the form that finds most."""
        own = self.plain(names)
        finding = max(self.forms, key=lambda form: len(self._of_form(wanted, own, _same, form)))
        file, module = finding
        return {module + bare.removeprefix(file): name for bare, name in own.items() if bare.startswith(file)}

    def strangers(self, found: Collection[str], names: Collection[str]) -> list[str]:
        """The file's names that are not among those `found` and belong to no other part of the full model."""
        taken = set(found)
        return [name for bare, name in self.plain(names).items() if name not in taken and not self.elsewhere(bare)]

    def _unless_equal(self, said: Mapping[str, str], read: Callable[[str], str]) -> dict[str, str]:
        """The names read on, but for those that would be one."""
        new = {name: read(text) for name, text in said.items()}
        counts = Counter(new.values())
        return {name: new[name] if counts[new[name]] == 1 else text for name, text in said.items()}

    def _best(self, wanted: Collection[str], names: Collection[str], renamed: Callable[[str], str]) -> dict[str, str]:
        """Module's name -> plain name, by the form that finds most."""
        best: dict[str, str] = {}
        for form in self.forms:
            found = self._of_form(wanted, names, renamed, form)
            best = found if len(found) > len(best) else best
        return best

    def _of_form(
        self, wanted: Collection[str], names: Collection[str], renamed: Callable[[str], str], form: tuple[str, str]
    ) -> dict[str, str]:
        file_prefix, module_prefix = form
        found: dict[str, str] = {}
        for name in names:
            if name.startswith(file_prefix):
                own = module_prefix + name.removeprefix(file_prefix)
                own = own if own in wanted else renamed(own)
                if own in wanted:
                    found.setdefault(own, name)
        return found
