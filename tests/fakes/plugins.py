"""A stand-in for srun with the plugins of pyxis and of CSCS's container engine.

It takes the words that their pages describe, refuses others, and starts each task on this machine
with the environment that a container would have: the image's values win over the job's, but for
those that `--container-env` names.
"""

import sys
from pathlib import Path

IMAGES_OWN = {"OMP_NUM_THREADS": "64", "NCCL_SOCKET_IFNAME": "eth0"}

_SRUN = """#!{python}
import json, os, pathlib, re, subprocess, sys, tomllib

def refuse(why):
    sys.exit(f"srun: error: {{why}}")

PLUGINS = {plugins}
OWN = ["kill-on-bad-exit", "cpus-per-task", "nodes", "ntasks", "ntasks-per-node", "overlap"]
words, given = sys.argv[1:], {{}}
while words and words[0].startswith("--"):
    name, _, value = words.pop(0)[2:].partition("=")
    if name not in (*OWN, *PLUGINS) or name in given:
        refuse(f"unrecognized option or twice: --{{name}}")
    given[name] = value
if not words:
    refuse("no command")
visible, kept = [], []
if file := given.get("environment"):
    said = tomllib.loads(pathlib.Path(file).read_text())
    visible, place = [text.split(":")[0] for text in said["mounts"]], os.getcwd()
else:
    named = r"/\\S+\\.sqsh|([a-z0-9.-]+#)?[a-z0-9./_-]+(:[A-Za-z0-9._-]+)?"
    if not re.fullmatch(named, given["container-image"]):
        refuse("pyxis: no image: " + given["container-image"])
    for mount in given["container-mounts"].split(","):
        found = re.fullmatch(r"(/[^:]*):(/[^:]*)(:(ro|rw|rslave|x-.*))?", mount)
        if found is None or not os.path.exists(found[1]):
            refuse("pyxis: invalid mount: " + mount)
        visible.append(found[2])
    place = given["container-workdir"]
    kept = [name for name in given.get("container-env", "").split(",") if name]
if not any(pathlib.Path(place).is_relative_to(path) for path in visible):
    refuse(f"couldn't chdir to {{place}}: not mounted")
kept = {{name: os.environ[name] for name in kept if name in os.environ}}
environ = {{**os.environ, **{own}, **kept}}
tasks = int(os.environ.get("SLURM_NTASKS", "1"))
codes = []
for rank in range(tasks):
    own = {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": str(tasks)}}
    codes.append(subprocess.run(words, env={{**environ, **own}}, cwd=place).returncode)
sys.exit(max(codes))
"""
_PLUGINS = {
    "pyxis": ("container-image", "container-mounts", "container-workdir", "container-env"),
    "edf": ("environment",),
}


def srun_with(plugin: str, folder: Path) -> None:
    """Write the stand-in, with one of the plugins, into a folder for PATH."""
    folder.mkdir(parents=True)
    text = _SRUN.format(python=sys.executable, plugins=_PLUGINS[plugin], own=IMAGES_OWN)
    (folder / "srun").write_text(text)
    (folder / "srun").chmod(0o755)
