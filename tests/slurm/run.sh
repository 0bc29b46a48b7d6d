#!/usr/bin/env bash
# A real Slurm of one node on this machine, and the tests that need one. For a machine of your own
# or a container, as root on Debian or Ubuntu: it installs slurm-wlm and munge if they are missing.
# PY=/path/to/python names another interpreter than .venv's.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PY:-.venv/bin/python}
if ! "$python" -c "import lora2" 2>/dev/null; then
  echo "$python cannot import lora2: run make test-slurm, or name another with PY=" >&2
  exit 2
fi

if [ "$(id -u)" != 0 ]; then
  echo "tests/slurm/run.sh starts Slurm's daemons and needs root: run it in a container" >&2
  exit 2
fi
if ! { command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
fi
"$python" -c "import submitit" 2>/dev/null || "$python" -m pip install --quiet submitit

here=$(mktemp -d)
node=$(hostname -s)
started=()
stop() {
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait || true
  rm -rf "$here"
}
trap stop EXIT

mkdir -p "$here/state" "$here/spool" /run/munge
chown munge: /run/munge
if ! munge -n >/dev/null 2>&1; then
  runuser -u munge -- munged --foreground &
  started+=($!)
fi
# cred_expire: a requeued job waits that long before it starts again (two minutes by default).
# KillWait: SIGKILL as soon after SIGTERM as Slurm can, not half a minute later.
cat >"$here/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=1
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000
PartitionName=test Nodes=$node Default=YES MaxTime=60 State=UP
EOF
export SLURM_CONF=$here/slurm.conf
for _ in $(seq 20); do munge -n >/dev/null 2>&1 && break; sleep 0.5; done
slurmctld -D & started+=($!)
slurmd -D -N "$node" & started+=($!)
for _ in $(seq 60); do
  [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ] && break
  sleep 1
done
if ! sinfo --noheader --format=%t | grep -qx idle; then
  echo "Slurm's node did not come up:" >&2
  tail -20 "$here"/slurm*.log >&2
  exit 1
fi

LORA2_TEST_SLURM=1 "$python" -m pytest -m slow tests/slurm "$@"
