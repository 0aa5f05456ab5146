"""A trainer of several processes that goes on with fewer: `PYTHON elastic.py SAVE_DIR STEPS EVERY`.

Its first process logs and saves; all add up a number in each step, so that none goes on alone. With
$ELASTIC_DIES=NODE:STEP the process of that node kills itself, once, after that step, and its agent
before with NODE:STEP:agent.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

if __name__ == "__main__":
    folder, steps, every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo")
    folder.mkdir(parents=True, exist_ok=True)
    world, leads = dist.get_world_size(), dist.get_rank() == 0
    saved = [int(path.stem.partition("-")[2]) for path in folder.glob("save-*.json")]
    start = max(saved, default=0)
    if leads:
        print(f"start {start} world {world}", flush=True)
    node, at, *too = os.environ["ELASTIC_DIES"].split(":")
    mark = folder / "killed"
    for step in range(start + 1, steps + 1):
        total = torch.ones(1)
        dist.all_reduce(total)
        if leads:
            print(f"step {step} loss {1 / step:.5f} rate 0.1 of {int(total)}", flush=True)
        if leads and step % every == 0:
            part = folder / ".part"
            part.write_text(json.dumps({"step": step}))
            part.rename(folder / f"save-{step}.json")
        if os.environ.get("ELASTIC_NODE", "0") == node and step == int(at) and not mark.exists():
            mark.touch()
            if too == ["agent"]:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
    dist.barrier()
    dist.destroy_process_group()
