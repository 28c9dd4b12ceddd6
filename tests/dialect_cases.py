"""One model in many dialects: state dicts whose names say the same in other words, drawn by a seeded generator."""

import random
import re
from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]
EXPERTS, WIDE, INNER, LAYERS = 3, 6, 4, 2


def model(seed: int) -> State:
    """A vision-language mixture of experts under today's names, with stacks of experts."""
    drawn = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=drawn)

    state = {"model.language_model.embed_tokens.weight": some(11, WIDE), "lm_head.weight": some(11, WIDE)}
    for layer in range(LAYERS):
        front = f"model.language_model.layers.{layer}."
        state |= {f"{front}self_attn.{part}_proj.weight": some(WIDE, WIDE) for part in "qkv"}
        state |= {f"{front}input_layernorm.weight": some(WIDE), f"{front}input_layernorm.bias": some(WIDE)}
        state |= {f"{front}mlp.gate.weight": some(EXPERTS, WIDE)}
        state |= {f"{front}mlp.experts.gate_up_proj": some(EXPERTS, 2 * INNER, WIDE)}
        state |= {f"{front}mlp.experts.down_proj": some(EXPERTS, WIDE, INNER)}
        state |= {f"model.vision_tower.encoder.layers.{layer}.self_attn.q_proj.weight": some(5, 5)}
    return state | {"model.multi_modal_projector.linear_1.weight": some(WIDE, 5)}


# --- words: each a change of a whole state -----------------------------------------------------------------------


def renamed(state: State, rename: Callable[[str], str]) -> State:
    return {rename(name): value for name, value in state.items()}


def before_4_52(state: State) -> State:
    """The prefixes of vision-language models before transformers 4.52."""

    def rename(name: str) -> str:
        name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
        name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
        return re.sub(r"^model\.(?=vision_tower|multi_modal)", "", name)

    return renamed(state, rename)


def greek(state: State) -> State:
    """LayerNorm's parameters as TensorFlow calls them."""
    return renamed(
        state,
        lambda name: re.sub(r"norm\.(weight|bias)$", lambda m: f"norm.{'gamma' if m[1] == 'weight' else 'beta'}", name),
    )


def one_by_one(state: State, parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> State:
    """A tensor an expert, as transformers 4 has them."""
    apart: State = {}
    for name, value in state.items():
        front, found, part = name.partition(".experts.")
        if not found:
            apart[name] = value
            continue
        for expert, matrix in enumerate(value):
            cut = matrix.chunk(2) if part == "gate_up_proj" else (matrix,)
            names = parts[:2] if part == "gate_up_proj" else parts[2:]
            apart |= {
                f"{front}.experts.{expert}.{own}.weight": one.clone() for own, one in zip(names, cut, strict=True)
            }
    return apart


def mixtral(state: State) -> State:
    """Mixtral's names before transformers 5."""
    return renamed(one_by_one(state, ("w1", "w3", "w2")), lambda name: name.replace(".mlp.", ".block_sparse_moe."))


def wrapped(state: State, chance: random.Random) -> State:
    """Wrappers at one or two places inside names, as a module that is wrapped puts them into all names below it."""
    for _ in range(chance.randint(1, 2)):
        segments = chance.choice(sorted(state)).split(".")
        place = chance.randrange(max(1, len(segments) - 1))
        front = "".join(f"{segment}." for segment in segments[:place])
        word = chance.choice(("_orig_mod", "_checkpoint_wrapped_module", "module", "_fsdp_wrapped_module"))
        inside = [name for name in state if name.startswith(front)]
        state = renamed(
            state, lambda name, f=front, w=word, i=frozenset(inside): f"{f}{w}.{name[len(f) :]}" if name in i else name
        )
    return state


def spoken(state: State, seed: int) -> State:
    """The state in a dialect that `seed` draws; of zero, as it is."""
    if seed == 0:
        return state
    chance = random.Random(seed)
    for words in ((one_by_one, mixtral), (before_4_52,), (greek,)):
        state = chance.choice((*words, lambda same: same))(state)
    return wrapped(state, chance) if chance.random() < 0.6 else state
