"""Files of the real torch.save, from which the iteration is read without loading them."""

import subprocess
from pathlib import Path

import pytest

from autoexp.resources.copies import iteration_in

# What nanoGPT's train.py puts into its checkpoint.
SAVE = """
import sys, torch
model = torch.nn.Sequential(torch.nn.Embedding(50304, 8), torch.nn.Linear(8, 8))
optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
model(torch.tensor([1])).sum().backward()
optimizer.step()
config = {"out_dir": "out", "eval_interval": 2000, "max_iters": 600000, "learning_rate": 6e-4}
torch.save(
    {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": {"n_layer": 1, "block_size": 8},
        "iter_num": int(sys.argv[2]),
        "best_val_loss": torch.tensor(3.5),
        "config": config,
    },
    sys.argv[1],
)
"""


@pytest.mark.parametrize("iteration", [7, 2000, 598_000])
def test_the_iteration_of_a_file_by_torch_is_read_unless_it_is_cut(
    torch: str, tmp_path: Path, iteration: int
) -> None:
    file = tmp_path / "ckpt.pt"
    subprocess.run([torch, "-c", SAVE, str(file), str(iteration)], check=True)
    assert iteration_in(file, "iter_num") == iteration
    assert iteration_in(file, "iter_number") is None
    whole = file.read_bytes()
    for size in (len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert iteration_in(file, "iter_num") is None
