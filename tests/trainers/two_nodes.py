"""Two nodes of a job in one: `PYTHON two_nodes.py LAUNCHER...` starts the launcher once for each.

As under srun's `--kill-on-bad-exit=0` a node that dies ends no other. The first one's code is its
own.
"""

import os
import socket
import subprocess
import sys


def quick(node):
    """The first node has the meeting point; a dead one is noticed within seconds."""
    patience = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
    return {"PET_RDZV_CONF": f"is_host={int(node == 0)},{patience}"}


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meets = f"127.0.0.1:{free.getsockname()[1]}"
    nodes = [
        subprocess.Popen(
            sys.argv[1:],
            env={
                **os.environ,
                "ELASTIC_NODE": str(node),
                "PET_RDZV_ENDPOINT": meets,
                **quick(node),
            },
        )
        for node in range(2)
    ]
    codes = [node.wait() for node in nodes]
    print("nodes ended with", codes, flush=True)
    sys.exit(codes[0])
