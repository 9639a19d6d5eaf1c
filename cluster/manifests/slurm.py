"""A Slurm batch script that makes a Ray cluster of its nodes, runs one command on it, and ends it.

``ray symmetric-run`` starts Ray on every node and the command on the first. Options are those that Slurm
documents for sbatch; an ``#SBATCH`` line that comes after the first command has no effect for Slurm, so it is
found like a wrong one.
"""

from __future__ import annotations

import difflib
import re
import shlex

from cluster.manifests.fields import names
from cluster.manifests.request import ClusterRequest

OPTIONS = frozenset(
    names(
        "account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint "
        "container container-id contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task "
        "deadline delay-boot dependency distribution error exclude exclusive export export-file extra "
        "extra-node-info get-user-env gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task "
        "gres gres-flags hint hold ignore-pbs input job-name kill-on-invalid-dep licenses mail-type "
        "mail-user "
        "mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-kill no-requeue nodefile "
        "nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode "
        "output overcommit oversubscribe parsable partition power prefer priority profile propagate "
        "qos quiet "
        "reboot requeue reservation resv-ports segment signal sockets-per-node spread-job stepmgr switches "
        "test-only thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid use-min-nodes "
        "verbose wait wait-all-nodes wckey wrap"
    )
)
NEEDED = ("job-name", "nodes", "ntasks-per-node", "time")
_LINE = re.compile(r"#SBATCH\s+--(?P<name>[\w-]+)(?:[= ]|\s*$)")


def write(request: ClusterRequest) -> str:
    """Return the batch script."""
    name = shlex.quote(request.name)
    gpus = f"#SBATCH --gpus-per-node={request.gpus}\n" if request.gpus else ""
    return f"""\
#!/bin/bash
# A Ray cluster of {request.workers} nodes for one command.
#   sbatch THIS_FILE       starts it
#   tail -f {request.name}-JOB.log     follows it
#   scancel JOB            stops it
#SBATCH --job-name={name}
#SBATCH --nodes={request.workers}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={request.cpus}
{gpus}#SBATCH --mem={request.memory_gib}G
#SBATCH --time={request.time}
#SBATCH --output=%x-%j.log
#SBATCH --exclusive  # Ray on a node is ended as a whole, so share it with nobody
# Your site may need these too:
##SBATCH --partition=...
##SBATCH --account=...
set -euo pipefail

# Make Python find orchestrator and your code on every node, for example:
# source "$SLURM_SUBMIT_DIR/.venv/bin/activate"
cd "$SLURM_SUBMIT_DIR"
export RAY_USAGE_STATS_ENABLED=0

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((20000 + SLURM_JOB_ID % 10000))

# Starts Ray on every node, waits for all, and runs the command on the first. Each node is one task of
# srun, not one rank: without these variables the Trainer does not take it for one. In the command,
# Trainer(devices={max(1, request.gpus)}, num_nodes={request.workers}) takes all nodes.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \\
  env -u SLURM_PROCID -u SLURM_STEP_NUM_TASKS \\
  ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \\
  --num-cpus={request.cpus} --num-gpus={request.gpus} \\
  -- {request.entrypoint}
"""


def check(text: str) -> list[str]:
    """Return what is wrong with a batch script's first line and options."""
    lines = text.splitlines()
    found = []
    if not lines or not lines[0].startswith("#!"):
        found.append("line 1: Slurm wants an interpreter, such as #!/bin/bash.")
    seen: set[str] = set()
    started = False
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            started = True
        if not line.startswith("#SBATCH"):
            continue
        option = _LINE.match(line)
        if option is None:
            found.append(f"line {number}: write options in full, as #SBATCH --name=value.")
        elif option["name"] not in OPTIONS:
            near = difflib.get_close_matches(option["name"], OPTIONS, n=1)
            hint = f" Did you mean '--{near[0]}'?" if near else ""
            found.append(f"line {number}: unknown option '--{option['name']}'.{hint}")
        elif started:
            found.append(
                f"line {number}: '--{option['name']}' comes after a command, where Slurm ignores it."
            )
        else:
            seen.add(option["name"])
    found += [f"missing option '--{name}'." for name in NEEDED if name not in seen]
    return found
