"""Texts as token numbers, by a tokenizer of transformers that lies in a folder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmerge.errors import BadFile, Mismatch
from taskmerge.models.own_code import code_of, needs_code
from taskmerge.models.quiet import quiet
from taskmerge.types import Inputs


def load_tokenizer(folder: Path, key: str = "tokenizer") -> Any:
    """The tokenizer of a folder, from its own files alone, padding on the right.

    `key` is the suite's key that names the folder. Raises `BadFile` that names the folder when it has none.
    """
    import transformers

    hint = f"check `backbone: {key}`, or download the tokenizer's files into it"
    if not folder.is_dir():
        raise BadFile("no tokenizer: no such folder", where=str(folder), hint=hint)
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever a library's parsers raise for a damaged or missing file
        if code := code_of(folder / "tokenizer_config.json", "AutoTokenizer"):
            raise needs_code(folder / "tokenizer_config.json", code) from error
        raise BadFile(f"no tokenizer: {error}", where=str(folder), hint=hint) from error
    # a configuration without a vocabulary makes a tokenizer that knows nothing, and says nothing
    named = (name for name in tokenizer.vocab_files_names.values() if isinstance(name, str))
    files = list(dict.fromkeys([*named, "tokenizer.json"]))  # which every fast tokenizer may be saved as
    if not any((folder / name).is_file() for name in files):
        raise BadFile(f"no tokenizer: it has none of {', '.join(files)}", where=str(folder), hint=hint)
    length = tokenizer.model_max_length
    if not isinstance(length, int | float) or not length >= 1:
        raise BadFile(f"`model_max_length` is {length}", where=str(folder / "tokenizer_config.json"), hint=hint)
    if not len(tokenizer):
        raise BadFile("no tokenizer: its vocabulary is empty", where=str(folder), hint=hint)
    tokenizer.padding_side = "right"  # positions count from the first token
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BadFile("the tokenizer has neither a padding nor an end token", where=str(folder), hint=hint)
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2: masked anyway
    return tokenizer


@dataclass(frozen=True)
class TextPrepare:
    """Texts, or pairs of texts, -> `input_ids` and `attention_mask` int32 [N, L], L the longest of them.

    `token_type_ids` too where the tokenizer tells the second text from the first. Texts are cut to `max_length`
    tokens (None: the tokenizer's own); `vocabulary` is how many the model knows, `where` is for messages.
    """

    tokenizer: Any
    max_length: int | None
    vocabulary: int
    where: str = ""

    @cached_property
    def key(self) -> str:
        """The tokenizer's whole definition, hashed, and the longest input."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        text = fast.to_str() if fast is not None else json.dumps(sorted(self.tokenizer.get_vocab().items()))
        digest = hashlib.sha256(f"{type(self.tokenizer).__name__}\0{text}".encode()).hexdigest()
        return f"tokens {digest} {self._length()}"

    def __call__(self, raw: Sequence[Any]) -> Inputs:
        """Raw items as inputs. Raises `Mismatch` for pictures, and for tokens that the model does not know."""
        first, second = _texts(raw, self.where)
        if not first:
            empty = torch.zeros((0, 1), dtype=torch.int32)
            return {"input_ids": empty, "attention_mask": empty}
        found = self._encoded(first, second)
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {name: torch.from_numpy(found[name]).to(torch.int32) for name in names if name in found}
        if "token_type_ids" in inputs and not bool(inputs["token_type_ids"].any()):
            del inputs["token_type_ids"]
        self._check(inputs["input_ids"])
        return _attended(inputs)

    def _encoded(self, first: list[str], second: list[str] | None) -> Any:
        """What the tokenizer makes of texts. Raises `BadFile` where it makes nothing of them."""
        try:
            with quiet():
                return self.tokenizer(
                    first, second, truncation=True, max_length=self._length(), padding="longest", return_tensors="np"
                )
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # tokenizers end in panics that are no `Exception`
            what = f"the tokenizer cannot read these texts: {error}"
            raise BadFile(what, where=self.where or None, hint="check its files: is its vocabulary whole?") from error

    def _length(self) -> int:
        own = int(min(self.tokenizer.model_max_length, 1 << 30))
        return own if self.max_length is None else min(self.max_length, own)

    def _check(self, ids: Tensor) -> None:
        if ids.numel() and int(ids.max()) >= self.vocabulary:
            what = f"the tokenizer counts to {int(ids.max())}, the model has {self.vocabulary} tokens"
            raise Mismatch(what, where=self.where or None, hint="is it another model's tokenizer?")


def _attended(inputs: dict[str, Tensor]) -> Inputs:
    """A text of no tokens attends to one of padding, so that there is something to pool."""
    mask = inputs["attention_mask"]
    if mask.shape[1] == 0:
        return {name: torch.ones((len(mask), 1), dtype=torch.int32) * (name == "attention_mask") for name in inputs}
    mask[mask.sum(dim=1) == 0, 0] = 1
    return inputs


def _texts(raw: Sequence[Any], where: str) -> tuple[list[str], list[str] | None]:
    """The items as one list of texts, or two."""
    items = list(raw)
    if all(isinstance(item, str) for item in items):
        return items, None
    if all(
        isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(one, str) for one in item)
        for item in items
    ):
        return [item[0] for item in items], [item[1] for item in items]
    place = next(place for place, item in enumerate(items) if not isinstance(item, str))
    what = f"the backbone reads texts, and item {place} is {type(items[place]).__name__}"
    raise Mismatch(what, where=where or None, hint="check `backbone`, and `x` of the data")
