#!/usr/bin/env bash
# A real SLURM on one Debian 12 machine: a controller, accounting, and three nodes (n1 n2 n3) with
# 8 CPUs and 4 fake GPUs each, as root, without systemd. The tests marked `slurm` run on it.
set -euo pipefail

readonly usage="usage: up | down [--keep] | status | kill-node N | start-node N      (N is 1, 2 or 3)
       {stop|kill|start}-controller | {stop|start}-accounting
All it writes is in AUTOEXP_SLURM_DIR (default /var/lib/autoexp-slurm), but for /etc/slurm and a
block in /etc/hosts. 'down' removes it; 'down --keep' leaves jobs and accounting for the next 'up'."

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
dir=$(realpath -m -- "${AUTOEXP_SLURM_DIR:-/var/lib/autoexp-slurm}")
host=$(uname -n) host=${host%%.*}
readonly here dir host nodes=(n1 n2 n3) cgroups=/sys/fs/cgroup policy=/usr/sbin/policy-rc.d
readonly author="# Written by autoexp's tests/slurm/cluster.sh"
readonly mark="$author for $dir. Changes are lost."
readonly configs=(slurm.conf memory.conf cgroup.conf gres.conf slurmdbd.conf)
# mariadb's -core packages come without the system's own database.
readonly packages=(munge slurmctld slurmd slurm-client slurmdbd mariadb-{server,client}-core)

# Another cluster's SLURM_CONF, or the variables of a job we run in, would turn our questions aside.
unset "${!SLURM_@}" "${!SBATCH_@}" "${!SQUEUE_@}" "${!SINFO_@}"
export SLURM_CONF=/etc/slurm/slurm.conf PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s\n' "$*"; }
die() { printf 'cluster.sh: %s\n' "$2" >&2; exit "$1"; }

step() { # LABEL COMMAND...: runs it and prints how long it took
    local start=${EPOCHREALTIME/[.,]/} label=$1 tenths
    shift
    "$@"
    tenths=$(((${EPOCHREALTIME/[.,]/} - start) / 100000))
    printf '  %-20s %3d.%d s\n' "$label" $((tenths / 10)) $((tenths % 10))
}

wait_for() { # SECONDS LOG COMMAND...: asks until it says yes; past the deadline shows the daemon's log
    local deadline=$((SECONDS + $1)) log=$dir/log/$2.log
    shift 2
    until "$@" &>/dev/null; do
        ((SECONDS < deadline)) || { tail -n 20 "$log" >&2; "$@" >&2 || die 1 "no '$*' in time, see $log"; }
        sleep 0.1
    done
}

# ---- daemons -----------------------------------------------------------------------------------
pid_of() { # NAME: its pid; fails where the pid file is missing, stale, or names a stranger
    local pid words=$1
    [[ $1 == n[1-3] ]] && words="slurmd -N $1"
    read -r pid <"$dir/run/$1.pid" && [[ $pid =~ ^[1-9][0-9]*$ ]] || return 1
    # A pid file outlives a kill -9, and its number may be anybody's by now.
    [[ $(tr '\0' ' ' <"/proc/$pid/cmdline") =~ ^([^ ]*/)?"$words " ]] && echo "$pid"
} 2>/dev/null
dead() { ! grep -qs . "/proc/$1/cmdline"; } # asked of the process: slurmctld removes its pid file early

spawn() { # NAME COMMAND...: each goes into the background by itself and writes its own pid file
    local log=$dir/log/$1.log
    shift
    # An empty environment: what the caller's shell or a test has set must not reach every job.
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 SLURM_CONF="$SLURM_CONF" "$@" \
        </dev/null >>"$log" 2>&1 9>&- || { tail -n 20 "$log" >&2; die 1 "$1 did not start, see $log"; }
}

halt() { # NAME [SIGNAL]: a clean stop, then a kill for what does not take that
    local pid
    pid=$(pid_of "$1") || return 0
    for signal in "${2:-TERM}" KILL; do
        kill -s "$signal" "$pid" || true
        (wait_for 20 "$1" dead "$pid") &>/dev/null && return
    done
    die 1 "$1 (pid $pid) does not die"
}

munge_answers() { munge -n </dev/null | timeout 5 unmunge; }
sql() { timeout 10 mariadb --no-defaults --socket "$dir/db/socket" --user root "$@"; }
accounting_answers() { timeout 5 sacctmgr -n show cluster; }
registered() { timeout 5 sacctmgr -nP show assoc account=autoexp format=user | grep -qx root; }
controller_answers() { timeout 5 scontrol ping; }
node_answers() { # for its first ten seconds a dead node is idle; later there is a star behind its state
    pid_of "$1" && timeout 5 sinfo -h -N -p main -n "$1" -o %T |
        grep -qxE 'idle|mixed|allocated|completing|planned'
}
node_listens() { (: <>"/dev/tcp/127.0.0.1/1700${1#n}"); }
node_resumes() { # resume is refused for a node that is well: only the answer counts
    node_answers "$1" || { scontrol update nodename="$1" state=resume || true; node_answers "$1"; }
}
all_answer() {
    munge_answers && sql -e 'select 1' && registered && controller_answers || return 1
    for node in "${nodes[@]}"; do node_answers "$node" || return 1; done
} &>/dev/null

start_munge() {
    munge_answers &>/dev/null && return # a munged of the machine's own serves as well
    halt munged
    # As root and with a key of our own: who may read which directory is then no question.
    install -d -m 755 -o root -g root /run/munge
    [[ -s $dir/munge/key ]] || (umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
    spawn munged munged --key-file="$dir/munge/key" --seed-file="$dir/munge/seed" \
        --log-file="$dir/log/munged.log" --pid-file="$dir/run/munged.pid"
    wait_for 20 munged munge_answers
}

start_database() {
    sql -e 'select 1' &>/dev/null && return
    halt mariadbd
    if [[ ! -d $dir/db/data ]]; then # made aside and renamed: a killed attempt leaves no half of one
        rm -rf "$dir/db/new"
        spawn mariadbd mariadb-install-db --no-defaults --user=root --datadir="$dir/db/new" \
            --auth-root-authentication-method=socket --skip-test-db
        (umask 077 && od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$dir/db/password")
        mv "$dir/db/new" "$dir/db/data"
    fi
    for port in $(cat "$dir/db/port") {13306..13399}; do # the last one first: slurmdbd.conf then stays
        (: <>"/dev/tcp/127.0.0.1/$port") || break
    done 2>/dev/null
    say "$port" >"$dir/db/port"
    spawn mariadbd setsid --fork mariadbd --no-defaults --user=root --datadir="$dir/db/data" \
        --socket="$dir/db/socket" --bind-address=127.0.0.1 --port="$port" \
        --pid-file="$dir/run/mariadbd.pid" --skip-name-resolve --innodb-lock-wait-timeout=900
    wait_for 60 mariadbd sql -e 'select 1'
    sql <<<"create or replace user slurm@127.0.0.1 identified by '$(<"$dir/db/password")';
            grant all on slurm_acct_db.* to slurm@127.0.0.1"
}

start_accounting() {
    accounting_answers &>/dev/null || { halt slurmdbd; spawn slurmdbd slurmdbd; }
    wait_for 30 slurmdbd accounting_answers
    registered || { # each of these fails if it was done already; the last line has the last word
        sacctmgr -i add cluster autoexp
        sacctmgr -i add account autoexp cluster=autoexp
        sacctmgr -i add user root account=autoexp cluster=autoexp
    } &>/dev/null || wait_for 10 slurmdbd registered
}

start_controller() {
    controller_answers &>/dev/null || { halt slurmctld; spawn slurmctld slurmctld; }
    wait_for 30 slurmctld controller_answers
}

start_node() {
    node_answers "$1" >/dev/null && return
    halt "$1"
    spawn "$1" slurmd -N "$1"
    wait_for 30 "$1" node_listens "$1"
    wait_for 30 "$1" node_resumes "$1"
}

# ---- packages and configuration ----------------------------------------------------------------
packages_are_there() { type -P munged slurmctld slurmd sbatch slurmdbd mariadbd mariadb >/dev/null; }

install_packages() ( # a subshell, for the trap to hold whichever way it ends
    trap restore_policy EXIT
    # Debian starts daemons as it installs them; this keeps it from that.
    [[ ! -e $policy ]] || mv "$policy" "$policy.before-autoexp"
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
    chmod 755 "$policy"
    export DEBIAN_FRONTEND=noninteractive
    install=(apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends "${packages[@]}")
    # First what a killed install left half done; package lists are fetched only if they fail us.
    { dpkg --configure -a; "${install[@]}" || { apt-get -q update || true; "${install[@]}"; }; } \
        &>>"$dir/log/packages.log" || die 1 "apt failed: $(tail -n 20 "$dir/log/packages.log")"
)

restore_policy() { # also at the start of every `up`, for an install that was killed
    if grep -qsF "$author" "$policy"; then rm "$policy"; fi
    [[ ! -e $policy.before-autoexp ]] || mv "$policy.before-autoexp" "$policy"
}

refuse_what_is_not_ours() {
    for file in "${configs[@]/#//etc/slurm/}"; do
        [[ ! -e $file ]] || grep -qsF "$mark" "$file" ||
            die 1 "$file is another cluster's and stays. Take that down, or move it: $(head -n 1 "$file")"
    done
    # `down` removes the directory, so it must be ours from the start; MariaDB trips over a space.
    [[ $dir != *\ * && (-e $dir/.autoexp-slurm || -z $(ls -A "$dir" 2>/dev/null)) ]] ||
        die 1 "AUTOEXP_SLURM_DIR must be a new or empty directory without spaces: $dir"
}

make_directories() {
    mkdir -p /etc/slurm "$dir"
    touch "$dir/.autoexp-slurm"
    mkdir -p "$dir"/{db,dev,log,munge,run,spool/n{1..3},state}
    for gpu in "$dir"/dev/gpu{0..3}; do [[ -c $gpu ]] || mknod "$gpu" c 1 3; done
}

cgroups_may_be_made() {
    local probes=("$cgroups"/{freezer,memory}/autoexp-probe)
    rmdir "${probes[@]}" || true
    mkdir "${probes[@]}" && rmdir "${probes[@]}"
} 2>/dev/null

render() { # CONFIG: what belongs into /etc/slurm/CONFIG
    local template=$1 text
    [[ $1 != memory.conf ]] || template=memory-polling.conf
    [[ $1 != memory.conf ]] || ! cgroups_may_be_made || template=memory-cgroup.conf
    text=$(<"$here/etc/$template.in")
    text=${text//@MARK@/"$mark"} text=${text//@DIR@/"$dir"} text=${text//@HOST@/"$host"}
    text=${text//@DBPORT@/"$(cat "$dir/db/port")"} text=${text//@DBPASS@/"$(cat "$dir/db/password")"}
    say "$text"
}

config_is_current() {
    for file in "${configs[@]}"; do cmp -s <(render "$file") "/etc/slurm/$file" || return 1; done
} 2>/dev/null

write_config() { # after an edit, or under a new hostname, daemons must read it again; jobs live on
    for daemon in "${nodes[@]}" slurmctld slurmdbd; do halt "$daemon"; done
    for file in "${configs[@]}"; do
        (umask 077 && render "$file" >"/etc/slurm/$file.new")
        # slurmdbd insists on 600 for its own, which has a password in it.
        [[ $file == slurmdbd.conf ]] || chmod 644 "/etc/slurm/$file.new"
        mv "/etc/slurm/$file.new" "/etc/slurm/$file"
    done
}

write_hosts() { # [NAME...]: our block in /etc/hosts, written in place: in a container it is a mount
    local others
    others=$(sed '/^# autoexp-slurm begin/,/^# autoexp-slurm end/d' /etc/hosts)
    (($# == 0)) || grep -qw -- "$host" <<<"$others" || set -- "$host" "$@"
    (($# == 0)) || others+=$'\n# autoexp-slurm begin\n'"127.0.0.1 $*"$'\n# autoexp-slurm end'
    [[ $others == "$(</etc/hosts)" ]] || say "$others" >/etc/hosts
}

# ---- what one can ask for ----------------------------------------------------------------------
up() {
    refuse_what_is_not_ours
    restore_policy
    packages_are_there || command -v apt-get >/dev/null ||
        die 3 "SLURM is not installed and there is no apt. Run this on Debian 12, or in a container of it."
    make_directories
    write_hosts "${nodes[@]}"
    ! packages_are_there || ! config_is_current || ! all_answer || { say "the cluster is up"; return; }
    packages_are_there || step packages install_packages
    step munge start_munge
    step database start_database
    config_is_current || step configuration write_config
    step accounting start_accounting
    step controller start_controller
    for node in "${nodes[@]}"; do step "node $node" start_node "$node"; done
    say "the cluster is up after $SECONDS s. Next: sinfo, or autoexp run demo slurm=local_cluster"
}

cancel_jobs() {
    controller_answers || return 0
    timeout 10 squeue -h -o %F | sort -u | xargs -r timeout 10 scancel
    # The jobs of a dead node do not end: what is left after this is killed below.
    (wait_for 10 slurmctld no_jobs) || true
}
no_jobs() { [[ -z $(timeout 5 squeue -h) ]]; }

left_behind() { # jobs' processes, by cgroup and by what our slurmds set for them; and slurmstepds
    find "$cgroups"/*/slurm_n[1-3] -name cgroup.procs -exec grep -hvx 0 {} +
    grep -lzsxE 'SLURMD_NODENAME=n[1-3]' /proc/[0-9]*/environ | cut -d/ -f3
    for proc in /proc/[0-9]*; do
        [[ $(<"$proc/comm") != slurmstepd || $(readlink "$proc/cwd") != "$dir"/* ]] || say "${proc#/proc/}"
    done
} 2>/dev/null
all_dead() { left_behind | xargs -r kill -KILL; [[ -z $(left_behind) ]]; }

down() {
    [[ -e $dir/.autoexp-slurm ]] || { say "there is no cluster in $dir"; return; }
    cancel_jobs &>/dev/null
    for daemon in "${nodes[@]}" slurmctld slurmdbd mariadbd munged; do halt "$daemon"; done
    wait_for 20 slurmctld all_dead
    find "$cgroups"/*/slurm_n[1-3] -depth -type d -delete 2>/dev/null || true
    grep -lsF "$mark" "${configs[@]/#//etc/slurm/}" | xargs -r rm || true
    write_hosts
    [[ ${1:-} == --keep ]] || rm -rf "$dir"
    say "the cluster is down"
}

status() {
    local pid ready=0
    for daemon in munged mariadbd slurmdbd slurmctld "${nodes[@]}"; do
        if pid=$(pid_of "$daemon"); then say "$daemon up, pid $pid"; else say "$daemon down"; fi
    done
    controller_answers &>/dev/null || die 1 "the controller does not answer. Run: cluster.sh up"
    timeout 10 sinfo -N -p main -o '%6N %10T %14C %8G %E'
    for node in "${nodes[@]}"; do ! node_answers "$node" >/dev/null || ready=$((ready + 1)); done
    ((ready == 3)) || die 1 "$ready of 3 nodes answer. Run: cluster.sh up"
}

(($#)) || die 2 "$usage"
[[ $1 != status ]] || { status; exit; }
((EUID == 0)) || die 3 "needs root. Run it with sudo, or as root in a Debian 12 container."
# One at a time. The script is its own lock file: nothing to make, nothing to go stale.
exec 9<"$here/cluster.sh"
flock -w 300 9 || die 1 "another cluster.sh has been at work for five minutes"
case "$*" in
    up) up ;;
    down | "down --keep") down "${2:-}" ;;
    "kill-node "[123]) halt "n$2" KILL ;;
    "start-node "[123]) start_node "n$2" ;;
    stop-controller) halt slurmctld ;;
    kill-controller) halt slurmctld KILL ;;
    start-controller) start_controller ;;
    stop-accounting) halt slurmdbd ;;
    start-accounting) start_accounting ;;
    *) die 2 "$usage" ;;
esac
