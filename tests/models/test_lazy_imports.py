"""A fresh process imports only the library that a suite needs."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from taskmerge.models import backbones, fill, heads
from taskmerge.specs.suite import BackboneSpec
heavy = ("open_clip", "transformers", "torchvision", "timm")
print([name for name in heavy if name in sys.modules])
backbones.build(BackboneSpec("transformers", Path(sys.argv[1])), resolve=lambda place: place)
print([name for name in heavy if name in sys.modules and name != "torchvision"])  # transformers imports that
"""


def test_other_libraries_are_not_imported(tmp_path: Path) -> None:
    from model_cases import config_of, text_folder

    command = [sys.executable, "-c", SCRIPT, str(text_folder(tmp_path, config_of("bert")))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == ["[]", "['transformers']"]
    assert done.stderr == ""
