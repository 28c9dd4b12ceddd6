"""Trains the tiny base and its eight experts and writes examples/tiny (minutes on a CPU): see README.md."""

import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import yaml
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, log_softmax, normalize

import taskmerge
from captions import captioned
from taskmerge import Report
from taskmerge.reports.render import console
from tiny_tasks import TASKS, Pictures, drawn, handwritten_digits

SEED = 0
THREADS = 1  # fixed: another number of threads adds in another order
OUT = Path(__file__).parent / "tiny"
CONTEXT = 16
CAPTIONED, PRETRAIN_STEPS, PRETRAIN_BATCH, PRETRAIN_RATE = 30_000, 1200, 192, 1.5e-3
TRAIN, TEST, ADAPT = 4000, 500, 300  # pictures of a task (digits: 1397 and 400 exist)
TUNE_STEPS, TUNE_BATCH, TUNE_RATE = 400, 64, 4e-4

MODEL = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": 24, "patch_size": 6, "layers": 4, "width": 96, "head_width": 32, "mlp_ratio": 2.0,
    },
    "text_cfg": {"context_length": CONTEXT, "width": 64, "heads": 2, "layers": 2, "mlp_ratio": 2.0},
}  # fmt: skip


def write_vocabulary(captions: list[str], path: Path) -> None:
    """Keeps those merges of CLIP's byte-pair encoding that the captions and the classes use."""
    full = SimpleTokenizer()
    classes = [name for task in TASKS.values() for name in (*task.classes, *task.templates)]
    words = sorted({word.strip("{},'") for text in (*captions, *classes) for word in text.split()})
    pieces: set[str] = {full.decoder[token] for word in words if word for token in full.encode(word)}
    parts: dict[str, tuple[str, str]] = {a + b: (a, b) for a, b in full.bpe_ranks}
    needed: set[tuple[str, str]] = set()
    while pieces:  # a merge needs the merges that made its two halves
        pair = parts.get(pieces.pop())
        if pair is not None and pair not in needed:
            needed.add(pair)
            pieces.update(pair)
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    kept = [line for line in lines[1:] if tuple(line.split()) in needed]
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.write("\n".join([lines[0], *kept]).encode())


def create(vocabulary: Path) -> tuple[nn.Module, SimpleTokenizer]:
    """Writes model.json and builds the untrained model from it, with its tokenizer."""
    tokenizer = SimpleTokenizer(str(vocabulary), context_length=CONTEXT)
    MODEL["text_cfg"]["vocab_size"] = tokenizer.vocab_size
    config = OUT / "model.json"
    config.write_text(json.dumps(MODEL, indent=2) + "\n")
    open_clip.add_model_config(config)
    torch.manual_seed(SEED)
    return open_clip.create_model(config.stem), tokenizer


def to_input(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W, 3] to float [N, 3, H, W] between -1 and 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    """Moves, turns and scales each picture a little; the border is repeated."""
    theta = torch.eye(2, 3) + 0.05 * torch.randn(len(x), 2, 3, generator=generator)
    return grid_sample(x, affine_grid(theta, list(x.shape), False), padding_mode="border", align_corners=False)


def rate_at(step: int, steps: int, top: float) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine to zero."""
    warm = steps // 10
    return (
        top * (step + 1) / warm if step < warm else top * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
    )


def optimiser(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW that decays matrices alone."""
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}])


def update(optimizer: torch.optim.AdamW, loss: Tensor, rate: float) -> None:
    """One step at learning rate `rate`, the gradient clipped to norm 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


def pretrain(model: nn.Module, tokenizer: SimpleTokenizer, captions: list[str], pictures: NDArray[np.uint8]) -> None:
    """Contrastive pre-training; pictures that share a caption are all right answers to it."""
    generator = torch.Generator().manual_seed(SEED)
    x, tokens = to_input(pictures), tokenizer(captions)
    optimizer = optimiser(list(model.parameters()))
    for step in range(PRETRAIN_STEPS):
        batch = torch.randint(len(x), (PRETRAIN_BATCH,), generator=generator)
        image, text, scale = model(jitter(x[batch], generator), tokens[batch])
        logits = scale * image @ text.T
        same = (tokens[batch][:, None] == tokens[batch][None]).all(dim=2).float()
        target = same / same.sum(dim=1, keepdim=True)
        loss = -(target * (log_softmax(logits, 1) + log_softmax(logits.T, 1))).sum(dim=1).mean() / 2
        update(optimizer, loss, rate_at(step, PRETRAIN_STEPS, PRETRAIN_RATE))
        model.logit_scale.data.clamp_(max=math.log(100))
        if step % 100 == 99:
            print(f"  step {step + 1}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def zero_shot_head(model: nn.Module, tokenizer: SimpleTokenizer, name: str) -> Tensor:
    """[C, D]: the text embedding of each class, averaged over templates, normalised, times the logit scale."""
    rows = []
    for label in TASKS[name].classes:
        text = tokenizer([template.format(label) for template in TASKS[name].templates])
        rows.append(normalize(model.encode_text(text, normalize=True).mean(dim=0), dim=0))
    return torch.stack(rows) * model.logit_scale.exp()


def fine_tune(model: nn.Module, head: Tensor, pictures: Pictures) -> None:
    """Trains the visual tower against the frozen head."""
    generator = torch.Generator().manual_seed(SEED)
    x, y = to_input(pictures.x), torch.from_numpy(pictures.y)
    optimizer = optimiser(list(model.visual.parameters()))
    for step in range(TUNE_STEPS):
        batch = torch.randint(len(x), (TUNE_BATCH,), generator=generator)
        logits = model.encode_image(jitter(x[batch], generator), normalize=True) @ head.T
        update(optimizer, cross_entropy(logits, y[batch]), rate_at(step, TUNE_STEPS, TUNE_RATE))


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float16."""
    return {name: value.half().contiguous() for name, value in state.items()}


def make_data(name: str) -> Pictures:
    """Draws the task, writes test and unlabelled training pictures, gives the labelled training pictures."""
    rng = np.random.default_rng([SEED, list(TASKS).index(name)])
    task = TASKS[name]
    if task.draw is None:
        train, test = handwritten_digits(rng)
    else:
        train, test = drawn(task, TRAIN, rng, test=False), drawn(task, TEST, rng, test=True)
    np.savez_compressed(OUT / "data" / f"{name}.npz", test_x=test.x, test_y=test.y, adapt_x=train.x[:ADAPT])
    return train


def write_expert(model: nn.Module, tokenizer: SimpleTokenizer, name: str, pictures: Pictures) -> None:
    """Turns the base into the task's expert; writes its head and its visual tower."""
    head = zero_shot_head(model, tokenizer, name)
    save_file({"weight": head}, OUT / "heads" / f"{name}.safetensors", {"format": "pt"})
    fine_tune(model, head, pictures)
    visual = {key: value for key, value in model.state_dict().items() if key.startswith("visual.")}
    save_file(half(visual), OUT / f"{name}.safetensors", {"format": "pt"})


def write_suite() -> None:
    """The suite file: what the tasks are and where their files lie."""
    tasks = {
        name: {
            "expert": f"{name}.safetensors",
            "head": f"heads/{name}.safetensors",
            "kind": "classification",
            "metric": "accuracy",
            "templates": list(task.templates),
            "classes": list(task.classes),
            "data": {
                "test": {"file": f"data/{name}.npz", "x": "test_x", "y": "test_y"},
                "adapt": {"file": f"data/{name}.npz", "x": "adapt_x"},
            },
        }
        for name, task in TASKS.items()
    }
    backbone = {
        "library": "open_clip",
        "model": "model.json",
        "tokenizer": {"bpe": "bpe.txt.gz", "context_length": CONTEXT},
        "preprocess": {"image_size": 24, "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    suite = {"taskmerge": 1, "name": "tiny", "backbone": backbone, "base": "base.safetensors", "tasks": tasks}
    text = yaml.safe_dump(suite, sort_keys=False, default_flow_style=None, width=110)
    (OUT / "suite.yaml").write_text(text)


def measure() -> Report:
    """The base and every expert under every task's head."""
    return taskmerge.evaluate(["base", "experts"], suite=OUT / "suite.yaml", cross=True)


def results(report: Report) -> dict[str, dict[str, float]]:
    """Accuracy by checkpoint and head."""
    found: dict[str, dict[str, float]] = {}
    for row in report.rows:
        found.setdefault(row.encoder.removeprefix("expert:"), {})[row.head] = round(row.score.value, 4)
    return found


def main() -> None:
    """Draw, pre-train, fine-tune, write, measure what was written."""
    torch.set_num_threads(THREADS)
    start = time.time()

    def say(what: str) -> None:
        print(f"{time.time() - start:5.0f} s  {what}", flush=True)

    for folder in ("data", "heads"):
        (OUT / folder).mkdir(parents=True, exist_ok=True)
    say("drawing")
    captions, pictures = captioned(CAPTIONED, np.random.default_rng(SEED))
    train = {name: make_data(name) for name in TASKS}
    write_vocabulary(captions, OUT / "bpe.txt.gz")
    model, tokenizer = create(OUT / "bpe.txt.gz")
    say(f"pre-training on {len(set(captions))} different captions")
    pretrain(model, tokenizer, captions, pictures)
    save_file(half(model.state_dict()), OUT / "base.safetensors", {"format": "pt"})
    base = {name: value.clone() for name, value in model.state_dict().items()}
    for name, pictures_of_task in train.items():
        say(f"fine-tuning {name}")
        model.load_state_dict(base)
        write_expert(model, tokenizer, name, pictures_of_task)
    write_suite()
    say("measuring")
    report = measure()
    (OUT / "results.json").write_text(json.dumps(results(report), indent=2) + "\n")
    print(console(report), end="")
    say("done")


if __name__ == "__main__":
    main()
