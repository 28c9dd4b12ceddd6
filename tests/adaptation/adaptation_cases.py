"""Small suites of random experts, and runs of `adapt` on them that stop before their first update."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor, nn

from taskmerge.adaptation.build import built
from taskmerge.adaptation.loop import Adaptation
from taskmerge.adaptation.opening import Experts, Opened, Place
from taskmerge.adaptation.teachers import Teacher
from taskmerge.specs.suite import BackboneSpec, Preprocess, Split, Suite, Task
from taskmerge.specs.suite_file import load_suite
from taskmerge.workflows import adapt as adapting
from taskmerge.workflows import adapted

TASKS = ("cars", "digits", "signs")
CLASSES = {"cars": 5, "digits": 7, "signs": 4}
ITEMS = 20
CLIP: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 24, "layers": 2, "head_width": 12, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 8, "vocab_size": 516, "width": 16, "heads": 2, "layers": 1},
}
TEXT: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 20,
}  # fmt: skip
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "film", "worth", "seeing", "bad", "dog", "is", "kind", "the"]
TINY = Path(__file__).parents[2] / "examples" / "tiny" / "suite.yaml"
SLICE = ("arrows", "digits", "shapes")
State = dict[str, Tensor]
LABELLED = {"supervised_heads": {"adapt_split": "test"}}
"""Options of methods that do not run without."""


# --- suites ----------------------------------------------------------------------------------------------------


def tiny(*tasks: str) -> Suite:
    """Some tasks of the example's suite, in this order."""
    suite = load_suite(TINY)
    by_name = {task.name: task for task in suite.tasks}
    return replace(suite, tasks=tuple(by_name[name] for name in tasks or SLICE))


def random_like(state: Mapping[str, Tensor], seed: int, scale: float) -> State:
    """The same tensors plus normal numbers; vectors and scalars move like matrices."""
    generator = torch.Generator().manual_seed(seed)
    return {name: value + scale * torch.randn(value.shape, generator=generator) for name, value in state.items()}


def write_experts(folder: Path, base: State, heads: Mapping[str, State] | None = None, scale: float = 0.15) -> None:
    """base.safetensors and TASK.safetensors: random steps from the base; `heads` go into the experts' own files."""
    save_file(base, folder / "base.safetensors")
    for place, task in enumerate(TASKS):
        save_file(
            {**random_like(base, 10 + place, scale), **(heads or {}).get(task, {})}, folder / f"{task}.safetensors"
        )


def clip_suite(folder: Path, tasks: tuple[str, ...] = TASKS) -> Suite:
    """A small open_clip ViT, experts, head files, and pictures: without labels, and (`test`) with any."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(CLIP))
    visual = {
        name: tensor for name, tensor in open_clip.CLIP(**CLIP).state_dict().items() if name.startswith("visual.")
    }
    write_experts(folder, random_like({name: torch.zeros_like(tensor) for name, tensor in visual.items()}, 0, 0.3))
    made = []
    for place, task in enumerate(TASKS):
        generator = torch.Generator().manual_seed(20 + place)
        weight = 3 * torch.randn(CLASSES[task], CLIP["embed_dim"], generator=generator)
        save_file({"weight": weight}, folder / f"head_{task}.safetensors")
        pictures = np.random.default_rng(place).integers(0, 256, (ITEMS, 16, 16, 3), dtype=np.uint8)
        labels = np.arange(ITEMS) % CLASSES[task]
        np.savez(folder / f"{task}.npz", x=pictures, y=labels)
        splits = {name: Split("npz", folder / f"{task}.npz", ("x",), y) for name, y in (("adapt", None), ("test", "y"))}
        made.append(_task(folder, task, folder / f"head_{task}.safetensors", splits))
    backbone = BackboneSpec("open_clip", folder / "model.json", None, Preprocess(16, (0.5,) * 3, (0.25,) * 3))
    return _suite(folder, backbone, made, tasks)


def text_suite(folder: Path, family: str, tasks: tuple[str, ...] = TASKS) -> Suite:
    """A small transformers encoder whose experts carry their own classifiers, and texts without labels."""
    folder.mkdir(parents=True, exist_ok=True)
    config = _text_config(family)
    config.save_pretrained(folder)
    _tokenizer(family).save_pretrained(folder)
    kind = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    heads: dict[str, State] = {}
    for place, task in enumerate(TASKS):
        config.num_labels = CLASSES[task]
        full = {name: torch.zeros_like(tensor) for name, tensor in kind(config).state_dict().items()}
        own = [name for name in full if name.startswith(("classifier", "score", "bert.pooler"))]
        heads[task] = random_like({name: full[name] for name in own}, 30 + place, 0.5)
    base = {name: tensor for name, tensor in full.items() if name not in own and tensor.is_floating_point()}
    write_experts(folder, random_like(base, 1, 0.3), heads)
    made = []
    for place, task in enumerate(TASKS):
        words = np.random.default_rng(place)
        lines = [" ".join(words.choice(WORDS[4:], words.integers(2, 9))) for _ in range(ITEMS)]
        (folder / f"{task}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        splits = {"adapt": Split("jsonl", folder / f"{task}.jsonl", ("text",))}
        made.append(_task(folder, task, "expert", splits))
    return _suite(folder, BackboneSpec("transformers", folder), made, tasks)


def _task(folder: Path, name: str, head: Any, splits: Mapping[str, Split]) -> Task:
    classes = tuple(f"class {number}" for number in range(CLASSES[name]))
    return Task(name, folder / f"{name}.safetensors", head, "classification", "accuracy", classes, splits=splits)


def _suite(folder: Path, backbone: BackboneSpec, made: list[Task], tasks: tuple[str, ...]) -> Suite:
    chosen = tuple(task for name in tasks for task in made if task.name == name)
    return Suite("cases", str(folder / "suite.yaml"), folder, backbone, folder / "base.safetensors", chosen)


def _text_config(family: str) -> Any:
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=20, n_inner=24, bos_token_id=10,
            eos_token_id=10, pad_token_id=10,
        )  # fmt: skip
    return transformers.BertConfig(**TEXT, pad_token_id=0)


def _tokenizer(family: str) -> Any:
    words = (
        [*(word for word in WORDS if not word.startswith("[") or word == "[UNK]"), "<end>"]
        if family == "gpt2"
        else WORDS
    )
    tokenizer = FastTokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if family == "gpt2":
        return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="[UNK]")
    ends = [("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ends
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask", "token_type_ids"],
    )  # fmt: skip


# --- runs ------------------------------------------------------------------------------------------------------


@dataclass
class Assembled:
    """A run before its first update, with what it was built of; its files are closed."""

    run: Adaptation
    opened: Opened
    teachers: Mapping[str, Teacher]
    place: Place
    suite: Suite

    @property
    def module(self) -> nn.Module:
        return self.place.module

    @property
    def names(self) -> list[str]:
        """The merged tensors, in the order of the coefficients' rows."""
        return [one.name for one in self.run.on_weights.composed]

    def live(self) -> State:
        """The encoder's parameters and buffers as they are now."""
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}


def adapt(suite: Suite, output: Path, inputs: Any = (), **keywords: Any) -> adapted.AdaptReceipt:
    """`taskmerge.adapt` on one thread, without scores; the batch is one that these suites can fill."""
    plain = {"suite": suite, "output": output, "threads": 1, "scores": False, "batch_size": 8}
    return adapting.adapt(inputs, **{**plain, **LABELLED.get(keywords.get("method", ""), {}), **keywords})


class _EnoughError(Exception):
    """Raised in place of the first update."""


def assembled(suite: Suite, output: Path, inputs: Any = (), *, goes_on: bool = False, **keywords: Any) -> Assembled:
    """Everything that `adapt` puts together, through `adapt` itself; arithmetic stays on one thread.

    The run has not begun, or (`goes_on`) has come to its end.
    """
    found: list[Assembled] = []

    def catch(
        opened: Opened, experts: Experts, teachers: Mapping[str, Teacher], *rest: Any, **named: Any
    ) -> Adaptation:
        run = built(opened, experts, teachers, *rest, **named)
        run.setting, run.weights = replace(run.setting, pool=None), replace(run.weights, pool=None)
        found.append(Assembled(run, opened, teachers, rest[3], suite))
        if not goes_on:
            raise _EnoughError
        return run

    with pytest.MonkeyPatch.context() as patch, suppress(_EnoughError):
        patch.setattr(adapted, "built", catch)
        adapt(suite, output, inputs, **keywords)
    return found[0]


@contextmanager
def hearing(patch: pytest.MonkeyPatch, heard: Callable[[Any, int], None]) -> Iterator[None]:
    """`adapt` tells `heard` of every update."""
    plain = adapted.AdaptRunning

    def running(**values: Any) -> adapted.AdaptRunning:
        return plain(**{**values, "heard": heard})

    with patch.context() as inner:
        inner.setattr(adapting, "AdaptRunning", running)
        yield


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its relative path; times are taken out of the trace and the report."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            found[str(file.relative_to(folder))] = _timeless(file)
    return found


def _timeless(file: Path) -> bytes:
    if file.name == "trace.jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return json.dumps([{**line, "seconds": 0} for line in lines]).encode()
    if file.name == "report.json":
        return json.dumps({**json.loads(file.read_text()), "timing": {}}).encode()
    return file.read_bytes()


def doubles(path: Path) -> State:
    """A file's tensors in float64."""
    return {name: tensor.double() for name, tensor in load_file(path).items()}
