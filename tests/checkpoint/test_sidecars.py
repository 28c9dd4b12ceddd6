"""Which files of a model folder travel with a merge, and how differing tokenizers are told."""

from pathlib import Path

from taskmerge.checkpoint.sidecars import tokenizer_differences, travelling


def model_folder(parent: Path, name: str, **files: str) -> Path:
    folder = parent / name
    folder.mkdir()
    for file, content in files.items():
        (folder / file.replace("__", ".")).write_text(content)
    return folder


def test_configuration_and_tokenizer_travel_and_nothing_else(tmp_path: Path) -> None:
    kept = ["config__json", "open_clip_config__json", "preprocessor_config__json", "tokenizer__json", "vocab__txt"]
    left = ["model__safetensors", "README__md", "training_args__bin", "notes__txt", "pytorch_model__bin"]
    folder = model_folder(tmp_path, "m", **{name: name for name in (*kept, *left)})
    (folder / "merges.txt").mkdir()
    assert travelling(folder) == {name: folder / name for name in sorted(name.replace("__", ".") for name in kept)}


def test_equal_tokenizers_say_nothing(tmp_path: Path) -> None:
    folders = {name: model_folder(tmp_path, name, tokenizer__json="{}", config__json=name) for name in "abc"}
    assert tokenizer_differences(folders) == ()
    assert tokenizer_differences({}) == ()


def test_differing_tokenizers_are_told_by_file_and_model(tmp_path: Path) -> None:
    folders = {
        "c": model_folder(tmp_path, "c", tokenizer__json="2", vocab__txt="v", merges__txt="m"),
        "a": model_folder(tmp_path, "a", tokenizer__json="1", vocab__txt="v", merges__txt="m"),
        "b": model_folder(tmp_path, "b", tokenizer__json="1", vocab__txt="v"),
        "without": model_folder(tmp_path, "without", config__json="{}"),
    }
    assert tokenizer_differences(folders) == (
        "tokenizer.json differs: a, b | c",
        "merges.txt is only in a, c",
    )
    (folders["c"] / "merges.txt").write_text("n")
    assert tokenizer_differences(folders)[1] == "merges.txt differs: a | c; absent in b"
