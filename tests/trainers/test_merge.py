"""Merges of what torch and Transformers save, loaded again by them."""

import subprocess
from pathlib import Path

from autoexp.backends import merge
from tests.trainers.real import torch_python

MODELS = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
kind, root, *rest = sys.argv[1:]
config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
                     num_attention_heads=2, tie_word_embeddings=True)
torch.manual_seed(1)
models = [LlamaForCausalLM(config).to(torch.bfloat16 if kind == "bf16" else torch.float32)
          for _ in range(3)]
if rest:
    merged = LlamaForCausalLM.from_pretrained(rest[0], dtype="auto")
    for (name, found), *parts in zip(merged.named_parameters(), *(m.parameters() for m in models)):
        wanted = sum(w * p.double() for w, p in zip((0.5, 0.25, 0.25), parts)).to(found.dtype)
        assert found.dtype == parts[0].dtype and torch.equal(found, wanted), name
else:
    for number, model in enumerate(models):
        model.save_pretrained(f"{root}/{number}", max_shard_size="1KB")
"""
FILES = """
import sys, torch
root, *merged = sys.argv[1:]
tensors = [{"w": torch.full((2, 2), float(n)), "n": torch.tensor(n)} for n in range(3)]
if merged:
    found = torch.load(f"{merged[0]}/ckpt.pt", weights_only=True)
    assert found["model"]["w"].unique().tolist() == [0.75], found
    assert found["model"]["n"].item() == 2 and found["iter_num"] == 2 and "optimizer" not in found
else:
    for number, model in enumerate(tensors):
        torch.save({"model": model, "optimizer": {"m": model["w"]}, "iter_num": number},
                   f"{root}/{number}/ckpt.pt")
"""
WEIGHTS = ("--weights", "0.5", "0.25", "0.25", "--output")


def ran(python: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *words], capture_output=True, text=True, cwd="/")


def test_a_merge_of_transformers_models_is_loaded_as_their_weighted_sum(tmp_path: Path) -> None:
    python = torch_python("torch", "transformers")
    for kind in ("f32", "bf16"):
        root = tmp_path / kind
        made = ran(python, "-c", MODELS, kind, str(root))
        assert made.returncode == 0, made.stderr
        inputs = [str(root / str(number)) for number in range(3)]
        assert len(list((root / "0").glob("*.safetensors"))) > 1
        answer = ran(python, merge.__file__, *inputs, *WEIGHTS, str(root / "merged"))
        assert answer.returncode == 0, answer.stderr
        checked = ran(python, "-c", MODELS, kind, str(root), str(root / "merged"))
        assert checked.returncode == 0, checked.stderr


def test_a_merge_of_torch_checkpoints_has_their_model_and_no_optimizer(tmp_path: Path) -> None:
    python = torch_python("torch")
    inputs = [tmp_path / str(number) for number in range(3)]
    for folder in inputs:
        folder.mkdir()
    assert ran(python, "-c", FILES, str(tmp_path)).returncode == 0
    for words in (inputs, [folder / "ckpt.pt" for folder in inputs]):
        target = str(tmp_path / f"merged-{words[0].name}")
        answer = ran(python, merge.__file__, *map(str, words), *WEIGHTS, target)
        assert answer.returncode == 0, answer.stderr
        checked = ran(python, "-c", FILES, str(tmp_path), target)
        assert checked.returncode == 0, checked.stderr


def test_a_file_that_holds_more_than_weights_is_refused(tmp_path: Path) -> None:
    python = torch_python("torch")
    file = tmp_path / "ckpt.pt"
    saves = "import sys, torch, argparse; torch.save({'args': argparse.Namespace()}, sys.argv[1])"
    assert ran(python, "-c", saves, str(file)).returncode == 0
    answer = ran(python, merge.__file__, *[str(file)] * 3, *WEIGHTS, str(tmp_path / "merged"))
    assert answer.returncode == 1
    assert "ckpt.pt: cannot be loaded as weights alone" in answer.stderr
