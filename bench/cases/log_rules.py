"""Log rules: how fast a big log goes through them, beside ripgrep over the same patterns."""

import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from autoexp.config.compose import compose
from autoexp.logs.engines import Hyperscan, Linear, best_engine
from autoexp.logs.matcher import Matcher, matcher
from autoexp.logs.patterns import Wanted
from autoexp.logs.tail import LogCursor, LookBudget, read_new
from autoexp.monitor.decide import RuleBook
from autoexp.monitor.job_watch import JobWatch
from autoexp.rules.rules import LogRule
from autoexp.rules.ruleset import named
from autoexp.session.session import Session
from autoexp.states import Kind
from bench.world import sessions
from bench.world.measure import Figure, resident_mb

_BIG = 300_000_000
_SMALL = 50_000_000
_REPEATS = 5
_MATCHES = (
    b"[rank3]: torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    b"[rank1]: RuntimeError: CUDA error: an illegal memory access was encountered",
    b"slurmstepd: error: Detected 1 oom_kill event in StepId=123.0. Some processes may have been",
    b"[rank0]: Traceback (most recent call last):",
)


def production() -> list[Wanted]:
    """The patterns of the `production` preset."""
    rules = named(compose("demo", ["monitoring=production"]).experiment.monitoring)
    return [rule.wanted(name) for name, rule in rules if isinstance(rule, LogRule)]


def ordinary_log(path: Path, size: int) -> int:
    """What Megatron-LM prints on many nodes, one match in 10,000 lines; returns the matches."""
    block = b"".join(_ordinary_lines(number) for number in range(500))
    matches = 0
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(block + _MATCHES[matches % len(_MATCHES)] + b"\n")
            matches += 1
    return matches


def _ordinary_lines(number: int) -> bytes:
    """Twenty lines, of which one says how far the training has come."""
    ranks = b"".join(
        b"    rank %2d: (%7.2f, %7.2f)  forward-backward, optimizer, grads-all-reduce of step %d\n"
        % (rank, 120.5 + rank, 130.5 + rank, number)
        for rank in range(16)
    )
    timers = b"(min, max) time across ranks (ms):\n" + ranks
    memory = (
        b"[Rank %d] (after %d iterations) memory (MB) | allocated: 31236.7 | max allocated: "
        b"52345.2 | reserved: 58000.0 | max reserved: 58000.0\n" % (number % 64, number)
    )
    warning = b"WARNING:megatron.core.utils: number of microbatches is not a multiple of 8\n"
    return sessions.log_lines(number, 1) + timers + memory + warning


def iteration_log(path: Path, size: int) -> int:
    """An iteration line every line; returns how often a rule matches in it: never."""
    block = sessions.log_lines(1, 10_000)
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(block)
    return 0


def scan() -> list[Figure]:
    """The production rules over 300 MB, with every engine, and `ripgrep -c` in the same run."""
    patterns = production()
    figures = []
    kinds: list[tuple[str, Callable[[Path, int], int]]] = [
        ("ordinary output", ordinary_log),
        ("iteration lines only", iteration_log),
    ]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "job.log"
        for title, write in kinds:
            matches = write(log, _BIG)
            figures += _against_ripgrep(log, title, patterns, matches)
            write(log, _SMALL)
            look = partial(_search, log, matcher(patterns, Linear))
            rate = [_rate(log, look) for _ in range(_REPEATS)]
            figures.append(Figure(f"{title}: rules, without Hyperscan", "MB/s", rate))
            figures.append(_whole_watch(log, title))
    return figures


def _against_ripgrep(log: Path, title: str, patterns: list[Wanted], matches: int) -> list[Figure]:
    if best_engine() is not Hyperscan:
        raise SystemExit("the scan is measured with Hyperscan: pip install 'autoexp[fast]'")
    fast = matcher(patterns)
    rates, peers, ratios, above = [], [], [], []
    for _ in range(_REPEATS):
        Path("/proc/self/clear_refs").write_text("5")  # forget the greatest size so far
        base = resident_mb()
        rates.append(_rate(log, lambda: _expect(_search(log, fast), matches)))
        above.append(_peak_mb() - base)
        if shutil.which("rg"):
            peers.append(_rate(log, lambda: _expect(_ripgrep(log, patterns), matches)))
            ratios.append(rates[-1] / peers[-1])
    figures = [Figure(f"{title}: rules, Hyperscan", "MB/s", rates)]
    if peers:
        figures.append(Figure(f"{title}: ripgrep -c, the same patterns", "MB/s", peers))
        figures.append(Figure(f"{title}: times ripgrep's speed", "", ratios, least=1.0))
    figures.append(Figure(f"{title}: memory above the base", "MB", above, below=50))
    return figures


def _rate(log: Path, work: Callable[[], object]) -> float:
    """MB per second of CPU, that of a child process included: whatever runs beside them."""
    start = _cpu_s()
    work()
    return log.stat().st_size / 1e6 / (_cpu_s() - start)


def _cpu_s() -> float:
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1e3 if found else 0.0


def _expect(found: int, matches: int) -> None:
    if found != matches:
        raise RuntimeError(f"{found} lines matched, where {matches} should")


def _search(log: Path, rules: Matcher) -> int:
    """Read a log as the monitor does, and count the lines that match."""
    cursor, found, more = LogCursor(), 0, True
    while more:
        reading = read_new(log, cursor)
        cursor, more = reading.cursor, reading.more
        found += sum(1 for piece in reading.pieces for _ in rules.search(piece))
    return found


def _ripgrep(log: Path, patterns: Iterable[Wanted]) -> int:
    words = [word for each in patterns for word in ("-e", _for_ripgrep(each))]
    command = ["rg", "--no-config", "-a", "-c", *words, str(log)]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode > 1:
        raise RuntimeError(answer.stderr)
    return int(answer.stdout or 0)


def _for_ripgrep(wanted: Wanted) -> str:
    """Without the groups' names, which two patterns may not share there."""
    if wanted.is_regex:
        return re.sub(r"\(\?P<\w+>", "(?:", wanted.pattern)
    return re.sub(r"([.*+?()\[\]{}^$|\\])", r"\\\1", wanted.pattern)


def _whole_watch(log: Path, title: str) -> Figure:
    """Everything that a look does with new lines: rules, progress, metric rules, events."""
    values = []
    with tempfile.TemporaryDirectory() as folder:
        path = sessions.build(Path(folder), 1, "monitoring=production")
        session = Session.load(path)
        job = next(iter(session.jobs.values()))
        assert job.spec.kind is Kind.TRAIN
        book = RuleBook(session.experiment.monitoring, [job.spec])
        watched = book.watched(job.spec)
        attempt = job.attempts[0].model_copy(update={"log": str(log)})
        for _ in range(_REPEATS):
            job.cursor, watch = LogCursor(), JobWatch()
            attempt.matches = {}

            def look(watch: JobWatch = watch) -> None:
                reads_on = True
                while reads_on:
                    budget = LookBudget.of_one_log()
                    for _ in watch.read_log(job, attempt, watched, budget, final=False):
                        pass
                    reads_on = not watch.at_end

            values.append(_rate(log, look))
    return Figure(f"{title}: all of a look, metrics too", "MB/s", values)
