"""Packaged suites as they are shipped, from a hub to scores: tiny models under the public names, the real commands.

The hub is a server on this machine that speaks the protocol to the real clients. What the commands say is compared
with transformers' own models on the same files.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save, save_file
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import matthews_corrcoef
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

from hub_server import Hub, serving
from taskmerge.specs.suite_file import load_suite, packaged
from taskmerge.specs.suite_tasks import names_of

WORKER = """
import contextlib, io, json, sys
from taskmerge.cli.app import run
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""
SIZE = 224  # of the packaged suites' pictures
ALPHABET = sorted(ByteLevel.alphabet())


def drawn(model: Any, seed: int, scale: float = 1.5) -> Any:
    """The model with every weight drawn anew: starts such as zero biases would hide faults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, one in model.named_parameters():
            width = one.shape[-1] if one.dim() > 1 else 1
            start = 1.0 if one.dim() == 1 and name.endswith("weight") else 0.0
            draw = torch.randn(one.shape, generator=generator)
            one.copy_(start + draw * (scale / width**0.5 if one.dim() > 1 else 0.1))
    return model.eval()


def near(model: Any, base: Mapping[str, Tensor], seed: int) -> Any:
    """The model with the base's weights and something of its own: an expert."""
    drawn(model, seed, 0.8)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if name in base:
                one.mul_(1.0 if one.dim() > 1 else 0.1).add_(base[name])
    return model


def files(model: Any, *, weights: bool = True, config: bool = True) -> dict[str, bytes]:
    """What a model, a tokenizer or a picture processor leaves in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        found = {one.name: one.read_bytes() for one in Path(folder).iterdir()}
    return {
        name: data
        for name, data in found.items()
        if (weights or not name.endswith(".safetensors")) and (config or name != "config.json")
    }


def parquet(rows: Mapping[str, Sequence[Any]], features: Any) -> bytes:
    stream = io.BytesIO()
    datasets.Dataset.from_dict(dict(rows), features=datasets.Features(features)).to_parquet(stream)
    return stream.getvalue()


def data_set(configurations: Mapping[str, Mapping[str, bytes]]) -> dict[str, bytes]:
    """A data-set repository: one folder a configuration, one file a split, and the card that names them."""
    card = ["---", "configs:"]
    found: dict[str, bytes] = {}
    for name, splits in configurations.items():
        card += [f"- config_name: {name}", "  data_files:"]
        for split, data in splits.items():
            card += [f"  - split: {split}", f"    path: {name}/{split}-*"]
            found[f"{name}/{split}-00000-of-00001.parquet"] = data
    return {**found, "README.md": "\n".join([*card, "---", ""]).encode()}


@dataclass
class Program:
    """The program in a process of its own, with the hub clients' environment."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    def __call__(self, *arguments: object) -> str:
        """What a command that must succeed printed; `said` is what it wrote to standard error."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([str(one) for one in arguments]) + "\n")
        self.process.stdin.flush()
        code, out, err = json.loads(self.process.stdout.readline())
        assert code == 0, err
        self.said = err.splitlines()
        return str(out)

    def scores(self, *arguments: object) -> dict[tuple[str, str], float]:
        report = json.loads(self("eval", *arguments, "--json", "--no-cache", "--device", "cpu"))
        return {(row["checkpoint"], row["task"]): row["score"] for row in report["rows"]}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def environment(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    home = str(tmp_path_factory.mktemp("home"))
    more = {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    return {**known, **more, "TASKMERGE_CACHE": f"{home}/items"}


@pytest.fixture(scope="module")
def program(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    log = (tmp_path_factory.mktemp("log") / "err").open("w")
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WORKER]
    with log, subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment) as process:
        yield Program(process)
        process.kill()


# --- CLIP: zero-shot heads, pictures ---------------------------------------------------------------------------------

CLIP = "clip-vit-b-32-8"
BASE = "openai/clip-vit-base-patch32"
PICTURED = {"mnist": "ylecun/mnist", "dtd": "tanganke/dtd"}
TOWER = "vision_model."
"""Stands before the names of the public experts, and of the base."""
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
COUNT, RIGHT = 16, 12
"""Pictures of a task, and those whose label is what the expert says."""


@dataclass
class Clip:
    """The base, the experts by task, and the pictures and labels of two tasks."""

    config: Any
    base: Any
    experts: dict[str, dict[str, Tensor]]
    pictures: dict[str, list[Image.Image]]
    labels: dict[str, list[int]]
    tokenizer: Any
    processor: Any

    def predicted(self, vision: Mapping[str, Tensor], task: str) -> list[int]:
        """Classes by transformers' own full model with this vision tower."""
        model = transformers.CLIPModel(self.config).eval()
        model.load_state_dict(self.base.state_dict() | dict(vision))
        names, templates = names_of(task)
        pixels = self.processor([one.convert("RGB") for one in self.pictures[task]], return_tensors="pt")
        with torch.no_grad():
            seen = nn.functional.normalize(model.get_image_features(**pixels).pooler_output, dim=-1)
            classes = []
            for name in names:
                prompts = self.tokenizer([one.format(name) for one in templates], padding=True, return_tensors="pt")
                each = nn.functional.normalize(model.get_text_features(**prompts).pooler_output, dim=-1)
                classes.append(nn.functional.normalize(each.mean(0), dim=0))
            found: list[int] = (seen @ torch.stack(classes).T).argmax(1).tolist()
        return found

    def accuracy(self, vision: Mapping[str, Tensor], task: str) -> float:
        return float(np.mean(np.array(self.predicted(vision, task)) == self.labels[task]))


def clip_tokenizer() -> Any:
    """Bytes, alone and at the end of words; the last two tokens begin and end a text, as in the public one."""
    tokens = [*ALPHABET, *(f"{one}</w>" for one in ALPHABET), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer({token: place for place, token in enumerate(tokens)}, [], model_max_length=77)


def photographs(seed: int, mode: str) -> list[Image.Image]:
    """Pictures of several sizes, smooth enough to differ after resizing."""
    random = np.random.default_rng(seed)
    sizes = [(28, 28)] * COUNT if mode == "L" else [(40 + n, 60 - n) for n in range(COUNT)]
    small = random.integers(0, 256, (COUNT, 5, 5, 3), dtype=np.uint8)
    return [
        Image.fromarray(one).resize(size, Image.Resampling.BICUBIC).convert(mode)
        for one, size in zip(small, sizes, strict=True)
    ]


@pytest.fixture(scope="module")
def clip(hub: Hub) -> Clip:
    """A small CLIP in place of the public one, on the hub under the names of the packaged suite."""
    text = {**SMALL, "vocab_size": 514, "max_position_embeddings": 77, "eos_token_id": 2}  # 2: as the public one says
    pictured = {**SMALL, "image_size": SIZE, "patch_size": 56}
    config = transformers.CLIPConfig(text_config=text, vision_config=pictured, projection_dim=12)
    base = drawn(transformers.CLIPModel(config), 0)
    with torch.no_grad():
        base.logit_scale.fill_(2.0)
    vision = {name.removeprefix(TOWER): one for name, one in base.state_dict().items() if name.startswith(TOWER)}
    suite = load_suite(packaged()[CLIP])
    experts = {}
    for seed, task in enumerate((one.name for one in suite.tasks), 1):
        expert = near(transformers.CLIPVisionModel(config.vision_config), vision, seed)
        experts[task] = {f"{TOWER}{name}": one for name, one in expert.state_dict().items()}
        folder = files(expert, weights=False) | {"model.safetensors": save(experts[task])}
        hub.repositories[f"models/tanganke/clip-vit-base-patch32_{task}"] = folder
    assert suite.backbone.preprocess is not None
    mean, std = suite.backbone.preprocess.mean, suite.backbone.preprocess.std
    sides = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    processor = transformers.CLIPImageProcessorPil(image_mean=list(mean), image_std=list(std), **sides)
    tokenizer = clip_tokenizer()
    other = {"pytorch_model.bin": b"a pickle", "README.md": b""}
    hub.repositories[f"models/{BASE}"] = files(base, weights=False) | files(tokenizer) | files(processor) | other
    buffers = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    hub.repositories[f"models/{BASE}@refs/pr/15"] = {"model.safetensors": save(base.state_dict() | buffers), **other}
    pictures = {"mnist": photographs(1, "L"), "dtd": photographs(2, "RGB")}
    found = Clip(config, base, experts, pictures, {}, tokenizer, processor)
    for task, repository in PICTURED.items():
        names, _ = names_of(task)
        right = np.array(found.predicted(experts[task], task))
        found.labels[task] = [*right[:RIGHT].tolist(), *((right[RIGHT:] + 1) % len(names)).tolist()]
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
        test = parquet({"image": pictures[task], "label": found.labels[task]}, features)
        train = parquet({"image": pictures[task][:2], "label": [0, 1]}, features)
        hub.repositories[f"datasets/{repository}"] = data_set({"default": {"train": train, "test": test}})
    return found


def test_clip_experts_and_base_score_as_transformers_models_do(hub: Hub, clip: Clip, program: Program) -> None:
    hub.asked.clear()
    found = program.scores("experts", "base", "--suite", CLIP, "--tasks", "mnist,dtd")
    wanted = {("base", task): clip.accuracy(clip.base.state_dict(), task) for task in PICTURED}
    wanted |= {(f"expert:{task}", task): RIGHT / COUNT for task in PICTURED}
    assert found == wanted
    assert {found["base", task] for task in PICTURED}.isdisjoint({0.0, 1.0, RIGHT / COUNT}), "scores that tell apart"
    assert any("refs%2Fpr%2F15" in one for one in hub.asked)
    fetched = hub.downloads()
    assert fetched.count("model.safetensors") == 1 + len(PICTURED)  # the base once; no expert of the other tasks
    assert not [name for name in fetched if name.endswith(".bin")]


@pytest.mark.parametrize("options", [("task_arithmetic", "--coefficient", "0.3"), ("tsv_m",)], ids=lambda one: one[0])
def test_all_clip_experts_are_merged_and_the_result_is_scored(
    clip: Clip, program: Program, tmp_path: Path, options: tuple[str, ...]
) -> None:
    merged = tmp_path / "merged.safetensors"
    assert program("merge", "--suite", CLIP, "-m", *options, "-o", merged).strip() == str(merged)
    assert any("merging the 8 experts" in line for line in program.said)
    assert any("q, k and v are merged fused" in line for line in program.said)
    tensors, base = load_file(merged), clip.base.state_dict()
    if options[0] == "task_arithmetic":
        for name, one in tensors.items():
            wanted = base[name] + 0.3 * sum(expert[name] - base[name] for expert in clip.experts.values())
            torch.testing.assert_close(one, wanted, atol=1e-6, rtol=1e-5)
    found = program.scores(f"merged={merged}", "--suite", CLIP, "--tasks", "mnist,dtd")
    assert found == {("merged", task): clip.accuracy(tensors, task) for task in PICTURED}


def test_a_second_run_needs_no_hub(hub: Hub, clip: Clip, environment: dict[str, str], tmp_path: Path) -> None:
    """The command itself, in a process of its own, with what the others left in the cache."""
    hub.asked.clear()
    command = ["-m", "taskmerge", "eval", "base", "--suite", CLIP, "--tasks", "mnist", "--csv", "-"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    offline = {**environment, "HF_HUB_OFFLINE": "1", "TMPDIR": str(scratch)}
    done = subprocess.run([sys.executable, *command], env=offline, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f",{clip.accuracy(clip.base.state_dict(), 'mnist')}," in done.stdout
    assert hub.asked == []
    for _ in range(100):  # the process that asks the hub may end a moment later
        if not list(scratch.iterdir()):
            break
        time.sleep(0.05)
    assert list(scratch.iterdir()) == []


# --- GLUE: the experts' own heads, texts and pairs of texts ----------------------------------------------------------

WORDS = ("a", "film", "worth", "seeing", "the", "dog", "is", "kind", "bad", "on", "under", "never", "blue", "old")
TEXTS = 24
COLUMNS = {
    "cola": ("sentence",), "stsb": ("sentence1", "sentence2"), "mnli": ("premise", "hypothesis"),
    "sst2": ("sentence",), "rte": ("sentence1", "sentence2"),
}  # fmt: skip
CLASSES = {"stsb": 1, "mnli": 3}
METRICS = {"cola": "matthews", "stsb": "pearson+spearman"}
READ_BY = {"roberta": ("cola", "stsb", "mnli"), "gpt2": ("sst2", "rte")}
"""The tasks that have data here, by the family whose experts know their labels."""


def sentences(task: str) -> list[tuple[str, ...]]:
    """Items of a task: texts, or pairs of texts, of different lengths."""
    random = np.random.default_rng(list(COLUMNS).index(task))
    return [tuple(" ".join(random.choice(WORDS, random.integers(1, 9))) for _ in COLUMNS[task]) for _ in range(TEXTS)]


def byte_tokens(*special: str) -> dict[str, int]:
    return {token: place for place, token in enumerate([*special, *ALPHABET])}


@dataclass
class Family:
    """The tokenizer, the base's tensors, the experts as transformers' classifiers, and labels that they mostly say."""

    tokenizer: Any
    base: dict[str, Tensor]
    experts: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)

    def outputs(self, task: str, model: Any) -> Any:
        """Logits [N, C], one text at a time: nothing is padded."""
        with torch.no_grad():
            return torch.cat([model(**self.tokenizer(*item, return_tensors="pt")).logits for item in sentences(task)])

    def add(self, task: str, model: Any) -> None:
        found, random = self.outputs(task, model), np.random.default_rng(7)
        if CLASSES.get(task) == 1:
            self.labels[task] = (found[:, 0].numpy() + random.normal(size=TEXTS) * float(found.std())).tolist()
        else:
            noise = random.integers(0, found.shape[1], TEXTS)
            self.labels[task] = np.where(random.random(TEXTS) < 0.3, noise, found.argmax(1).numpy()).tolist()
        self.experts[task] = model

    def score(self, task: str, body: Mapping[str, Tensor] | None = None) -> float:
        """Of the task's classifier, with another encoder if one is given, whose names may lack the prefix."""
        model = self.experts[task]
        if body is not None:
            own, prefix = model.state_dict(), f"{model.base_model_prefix}."
            named = {prefix + name.removeprefix(prefix): one for name, one in body.items()}
            model = type(model)(model.config).eval()
            model.load_state_dict({name: named[name] if name.startswith(prefix) else one for name, one in own.items()})
        found, true = self.outputs(task, model), np.array(self.labels[task])
        if METRICS.get(task) == "pearson+spearman":
            return float(pearsonr(found[:, 0], true)[0] + spearmanr(found[:, 0], true)[0]) / 2
        said = found.argmax(1).numpy()
        return float(matthews_corrcoef(true, said) if METRICS.get(task) == "matthews" else (true == said).mean())

    def scores(self, row: str, body: Mapping[str, Tensor] | None = None) -> dict[tuple[str, str], Any]:
        """Of all its tasks, as `Program.scores` gives them."""
        return {(row.format(task), task): pytest.approx(self.score(task, body), abs=1e-5) for task in self.experts}


def table(task: str, labels: Sequence[Any]) -> dict[str, bytes]:
    """The one split of a task that is scored."""
    columns = {name: [item[place] for item in sentences(task)] for place, name in enumerate(COLUMNS[task])}
    kind = datasets.ClassLabel(num_classes=CLASSES.get(task, 2)) if task != "stsb" else datasets.Value("float32")
    features = {**{name: datasets.Value("string") for name in columns}, "label": kind}
    return {"validation_matched" if task == "mnli" else "validation": parquet({**columns, "label": labels}, features)}


@pytest.fixture(scope="module")
def glue(hub: Hub) -> dict[str, Family]:
    """Both families and the data of their tasks, on the hub under the names of the packaged suites."""
    found = {"roberta": roberta(hub), "gpt2": gpt2(hub)}
    labels = {task: one for family in found.values() for task, one in family.labels.items()}
    hub.repositories["datasets/nyu-mll/glue"] = data_set({task: table(task, one) for task, one in labels.items()})
    return found


def roberta(hub: Hub) -> Family:
    """All experts are in folders of one repository; the base is a language model with the constant buffer of old."""
    tokens = byte_tokens("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    tokenizer = transformers.RobertaTokenizer(tokens, [], model_max_length=512)
    settings = {**SMALL, "vocab_size": len(tokens), "max_position_embeddings": 514, "type_vocab_size": 1}
    base = drawn(transformers.RobertaForMaskedLM(transformers.RobertaConfig(**settings)), 0)
    state = {name: one for name, one in base.state_dict().items() if not name.startswith("lm_head.decoder")}
    buffer = {"roberta.embeddings.position_ids": torch.arange(514)[None]}
    hub.repositories["models/FacebookAI/roberta-base"] = {
        **files(base, weights=False), **files(tokenizer), "model.safetensors": save(state | buffer)
    }  # fmt: skip
    found, experts = Family(tokenizer, state), {}
    for seed, task in enumerate(one.name for one in load_suite(packaged()["glue-roberta-base-8"]).tasks):
        config = transformers.RobertaConfig(**settings, num_labels=CLASSES.get(task, 2))
        model = near(transformers.RobertaForSequenceClassification(config), state, 1 + seed)
        if task in READ_BY["roberta"]:
            with torch.no_grad():  # all classes are said
                model.classifier.out_proj.bias.sub_(found.outputs(task, model).median(0).values)
            found.add(task, model)
        experts[f"{task}/roberta-base_lr1e-05/model.safetensors"] = save(model.state_dict())
    hub.repositories["models/lu-vae/roberta-glue"] = experts
    return found


def gpt2(hub: Hub) -> Family:
    """Experts are classifiers with a tokenizer in their repository; the base is the bare encoder, its masks saved."""
    tokenizer = transformers.GPT2Tokenizer(byte_tokens("<|endoftext|>"), [], model_max_length=1024)
    special = {"bos_token_id": 0, "eos_token_id": 0}
    settings = {"vocab_size": 257, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 1024, **special}
    base = drawn(transformers.GPT2Model(transformers.GPT2Config(**settings)), 0)
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8).tril() for layer in range(2)}
    weights = {"model.safetensors": save(base.state_dict() | masks)}
    hub.repositories["models/openai-community/gpt2"] = files(base, weights=False) | weights
    found = Family(tokenizer, base.state_dict())
    start = {f"transformer.{name}": one for name, one in found.base.items()}
    for seed, task in enumerate(one.name for one in load_suite(packaged()["glue-gpt2-7"]).tasks):
        config = transformers.GPT2Config(**settings, num_labels=CLASSES.get(task, 2), pad_token_id=0)
        model = near(transformers.GPT2ForSequenceClassification(config), start, 1 + seed)
        if task in READ_BY["gpt2"]:
            found.add(task, model)
        hub.repositories[f"models/tanganke/gpt2_{task}"] = files(model) | files(tokenizer)
    return found


SUITES = {"glue-roberta-base-8": "roberta", "glue-gpt2-7": "gpt2"}


@pytest.mark.parametrize("suite", SUITES)
def test_classifiers_and_base_score_as_transformers_classifiers_do(
    glue: dict[str, Family], program: Program, suite: str
) -> None:
    family = glue[SUITES[suite]]
    found = program.scores("experts", "base", "--suite", suite, "--tasks", ",".join(family.experts))
    assert found == family.scores("expert:{}") | family.scores("base", family.base)
    for task in family.experts:
        assert found[f"expert:{task}", task] > found["base", task], "scores that tell apart"


@pytest.mark.parametrize("suite", SUITES)
def test_encoders_of_classifiers_are_merged_and_scored_with_the_experts_heads(
    glue: dict[str, Family], program: Program, tmp_path: Path, suite: str
) -> None:
    family, merged = glue[SUITES[suite]], tmp_path / "merged.safetensors"
    program("merge", "--suite", suite, "-m", "task_arithmetic", "-o", merged)
    assert any(f"merging the {suite[-1]} experts" in line for line in program.said)
    found = program.scores(f"merged={merged}", "--suite", suite, "--tasks", ",".join(family.experts))
    assert found == family.scores("merged", load_file(merged))


def test_roberta_of_seven_tasks_is_that_of_eight_without_one(glue: dict[str, Family], program: Program) -> None:
    found = program.scores("experts", "--suite", "glue-roberta-base-7", "--tasks", "cola,mnli")
    wanted = glue["roberta"].scores("expert:{}")
    assert found == {key: value for key, value in wanted.items() if key[1] != "stsb"}


# --- NYUv2: maps -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nyuv2_with_ones_own_checkpoints(hub: Hub, program: Program, tmp_path: Path) -> None:
    """The packaged suite printed and copied, as its notes say, and the public data's columns: arrays, not pictures."""
    from torchvision.models import resnet50
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    path = tmp_path / "suite.yaml"
    path.write_text(program("suites", "nyuv2-resnet50", "--yaml"))
    save_file(resnet50().state_dict(), tmp_path / "base.safetensors")
    (tmp_path / "heads").mkdir()
    for task, outputs in (("segmentation", 13), ("depth", 1), ("normals", 3)):
        (tmp_path / f"{task}.safetensors").symlink_to(tmp_path / "base.safetensors")
        save_file(DeepLabHead(2048, outputs).state_dict(), tmp_path / "heads" / f"{task}.safetensors")
    size, random = (24, 32), np.random.default_rng(0)
    arrays = {"image": (3, "float32"), "depth": (1, "float32"), "normal": (3, "float32"), "noise": (1, "float32")}
    features = {name: datasets.Array3D((first, *size), kind) for name, (first, kind) in arrays.items()}
    rows = {name: list(random.random((3, first, *size), dtype=np.float32)) for name, (first, _) in arrays.items()}
    rows["segmentation"] = list(random.integers(-1, 13, (3, *size)))
    table = parquet(rows, {**features, "segmentation": datasets.Array2D(size, "int64")})
    hub.repositories["datasets/tanganke/nyuv2"] = data_set({"default": {"train": table, "val": table}})
    found = program.scores("experts", "base", "--suite", path)
    for task in ("segmentation", "depth", "normals"):
        assert found[f"expert:{task}", task] == found["base", task] > 0
    true = np.stack(rows["segmentation"])
    assert found["base", "segmentation"] < 0.5
    assert (true == -1).any(), "pixels without a class"
