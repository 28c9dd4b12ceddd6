"""A small BERT whose words are letters: its configuration, and its tokenizer on disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import BertConfig

LETTERS = "abcdefghijklmno"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]


def letter_config(**more: Any) -> "BertConfig":
    """One layer of width 8, for texts of up to 16 tokens."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, **more,
    )  # fmt: skip


def save_letters(folder: Path) -> None:
    """Writes the tokenizer into a model's folder."""
    from transformers import BertTokenizerFast

    vocabulary = folder.with_name("vocab.txt")
    vocabulary.write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(vocabulary)).save_pretrained(folder)
