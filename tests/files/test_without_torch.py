"""What answers without torch, whose import takes longer than most files: looking at safetensors files and folders."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

RUN = """
import sys
from tied.cli import main
for form in ("text", "json", "sarif", "github", "html"):
    sys.argv = ["tied", "check", {subject!r}, "--format", form]
    try:
        main()
    except SystemExit as end:
        print(form, end.code, "torch" in sys.modules, file=sys.stderr)
"""


def looked(subject: Path) -> str:
    """Look at a file in every format; return the exit status of each, and whether torch is there by then."""
    code = RUN.format(subject=str(subject))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_looking_at_safetensors_needs_no_torch(name: str, tmp_path: Path) -> None:
    weight = torch.rand(300, 64)
    tensors = {"embed.weight": weight, "lm_head.weight": weight.clone(), "turned": weight.T.contiguous()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": False, "vocab_size": 300}))
    forms = ("text", "json", "sarif", "github", "html")
    assert looked(tmp_path / name) == "".join(f"{form} 1 False\n" for form in forms)


def test_this_test_can_fail(tmp_path: Path) -> None:
    torch.save({"w": torch.rand(3)}, tmp_path / "a.pt")
    assert looked(tmp_path / "a.pt").startswith("text 0 True\n")
