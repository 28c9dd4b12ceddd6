"""The bare script that `taskmerge eval experts base --cross` is compared with: open_clip, every checkpoint, every task.

    python benchmarks/bare_eval.py SUITE [BATCH_SIZE]

Reads the suite of one open_clip model whose data are .npz files, prints the accuracy of every encoder on every task.
"""

import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.functional import normalize


def main(path: Path, batch_size: int) -> None:
    suite = yaml.safe_load(path.read_text())
    folder, tasks = path.parent, suite["tasks"]
    open_clip.add_model_config(folder / suite["backbone"]["model"])
    visual = open_clip.create_model(Path(suite["backbone"]["model"]).stem).visual.eval()
    mean, std = (torch.tensor(suite["backbone"]["preprocess"][key])[:, None, None] for key in ("mean", "std"))
    data = {}
    for task, spec in tasks.items():
        split = spec["data"]["test"]
        arrays = np.load(folder / split["file"])
        pixels = torch.from_numpy(arrays[split["x"]]).permute(0, 3, 1, 2).contiguous()
        head = load_file(folder / spec["head"])["weight"]
        data[task] = pixels, torch.from_numpy(arrays[split["y"]]), head
    files = {task: folder / spec["expert"] for task, spec in tasks.items()} | {"base": folder / suite["base"]}
    for name, file in files.items():
        state = {key[7:]: value.float() for key, value in load_file(file).items() if key.startswith("visual.")}
        visual.load_state_dict(state)
        for task, (pixels, labels, head) in data.items():
            found = []
            with torch.inference_mode():
                for start in range(0, len(pixels), batch_size):
                    batch = (pixels[start : start + batch_size] / 255 - mean) / std
                    found.append((normalize(visual(batch), dim=1) @ head.T).argmax(1))
            print(name, task, float((torch.cat(found) == labels).float().mean()))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 128)
