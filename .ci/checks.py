"""Checks that a change may land.

    .ci/run              the checks that every change needs, and others chosen by history
    .ci/run all          every check, with every kernel variant and test problem
    .ci/run STEP...      these steps, each with all of its units
    .ci/run --plan ...   prints what would run and why, and runs nothing

The first steps always run. The other steps are made of units (a kernel, a planted fault, an emulator). A unit runs if a
file that it depends on changed within five days before the newest commit, or if it is its turn: one unit in eight, by
the number of commits. Units run only as far as the estimates fit into the time limit; those left out are listed.

Needs Rust, a C and C++ compiler and Python; `.ci/avx512` and `.ci/neon` install emulators from Debian's packages,
`.ci/cuda` NVIDIA's run-time compiler and libclang from PyPI.
"""

import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DAY = 24 * 60 * 60
RECENT = 5 * DAY
TURNS = 8
# A unit starts only if it is expected to end within this time, in seconds from the start of the run.
LIMIT = 28 * 60
# Steps that still run after this time are stopped, and count as failed.
DEADLINE = 44 * 60
ASKED = "asked for"


@dataclass
class Unit:
    """A part of a step that can run without the others."""

    name: str
    # Files on which its result depends, and folders, with a slash at the end.
    sources: set[str]
    # Estimate for two cores.
    seconds: int


@dataclass
class Step:
    name: str
    # The names of the chosen units are appended as arguments, except for a unit with the step's name.
    command: list[str]
    # Estimated seconds before the first unit, or of a whole step without units.
    seconds: int
    units: list[Unit] = field(default_factory=list)
    # If it fails, the other steps do not run.
    vital: bool = False
    # Keeps only one core busy, so it runs beside the steps after it.
    background: bool = False


# Sources of every kernel's code. Scripts and shared test code are left out, because a rotating eighth of the units
# always runs.
RENDERING = {"codegen/src/expand.rs", "codegen/src/spec.rs", "codegen/src/render/cuda.rs"}
FOR_SIMULATOR = RENDERING | {"codegen/src/host.rs"}
FOR_GPUS = RENDERING | {f"codegen/src/{name}.rs" for name in ("cubin", "device", "nvcc", "nvidia", "sass")}
SIMULATOR = {"src/device/sim/"}
CPU = {"src/cpu/", "src/ops/", "tests/reference/"}

# Estimated seconds of units; `None` is the default. Those of cubins are measured, the others are not yet.
SANITIZE = {None: 20, "rust": 300}
MUTANT = {None: 20}
CUBINS = {None: 5, "generator": 60, "rms_norm": 17, "act_mul": 8, "rotary_kv_write": 11, "matmul": 55,
          "attention_decode": 55, "attention_prefill": 65}


def steps():
    """Every check, in order."""
    return [
        Step("this script", [".ci/test_run"], 5),
        # The two commands of the README are vital, and build what the other steps use.
        Step("tests", ["bash", "-c", readme_command("cargo test")], 480, vital=True),
        Step("first command", ["bash", "-c", readme_command("cargo run")], 5, vital=True),
        Step("format", ["cargo", "fmt", "--all", "--check"], 3),
        # Clippy runs the build scripts again but no program, so the simulator's kernels are not compiled.
        Step("clippy", ["env", "CXX=none", "cargo", "clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"],
             60),
        Step("docs", ["env", "RUSTDOCFLAGS=-D warnings", "cargo", "doc", "--release", "--workspace", "--no-deps"], 20),
        Step("features", [".ci/features"], 0, [Unit("features", {"Cargo.toml", "build.rs", "src/"}, 60)]),
        # Emulated, unless the machine has the instructions and the tests have run with them.
        Step("avx512", [".ci/avx512"], 0, [Unit("avx512", CPU | {".ci/avx512"}, 0 if has_avx512() else 900)], background=True),
        Step("neon", [".ci/neon"], 0, [Unit("neon", CPU | {".ci/neon"}, 0 if platform.machine() == "aarch64" else 300)]),
        Step("sanitize", [".ci/sanitize"], 300, sanitized()),
        Step("mutants", [".ci/mutants"], 60, mutants()),
        Step("cubins", [".ci/cuda"], 60, cubins()),
        Step("pack", [".ci/pack"], 0, [Unit("pack", FOR_GPUS | {"tests/gpu/", "csrc/", ".ci/pack"}, 240)]),
        Step("benches", ["cargo", "bench", "--bench", "kernels", "--", "--test"], 0,
             [Unit("benches", {"benches/", "src/cpu/", "src/kernels/"}, 120)]),
    ]


def sanitized():
    of_kernels = [Unit(name, sources(name) | FOR_SIMULATOR, SANITIZE.get(name, SANITIZE[None]))
                  for name in kernels() + probes()]
    return [Unit("rust", {"src/"}, SANITIZE["rust"]), *of_kernels]


def cubins():
    of_kernels = [Unit(name, device_sources(name) | FOR_GPUS, CUBINS.get(name, CUBINS[None])) for name in kernels()]
    return [Unit("generator", {"codegen/", "csrc/abi/", "src/kernels/abi.rs"}, CUBINS["generator"]), *of_kernels]


def mutants():
    listed = subprocess.run([".ci/mutants", "--list"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    units = []
    for line in listed.splitlines():
        name, variants = line.split("|")
        of = {variant.split("__")[0] for variant in variants.split()}
        units.append(Unit(name, set().union(*map(sources, of)) | FOR_SIMULATOR | SIMULATOR, MUTANT.get(name, MUTANT[None])))
    return units


def has_avx512():
    cpu = Path("/proc/cpuinfo")
    return cpu.is_file() and " avx512dq " in cpu.read_text()


def readme_command(start):
    lines = (ROOT / "README.md").read_text().splitlines()
    return next((line for line in lines if line.startswith(start)), None) or sys.exit(f"README.md has no `{start} …`")


# Sources of kernels.


def kernels():
    """Kernels with device code."""
    specs = sorted((ROOT / "codegen/specs").glob("*.toml"))
    return [spec.stem for spec in specs if re.search(r"^\[\[axis\]\]", spec.read_text(), re.M)]


def probes():
    return sorted(probe.stem for probe in (ROOT / "codegen/probes").glob("*.toml"))


def device_sources(name):
    """The files that a kernel or probe is compiled from: its specification, its device code and what that includes."""
    of_name = [f"codegen/specs/{name}.toml", f"codegen/probes/{name}.toml", f"csrc/kernels/{name}.cu", f"csrc/probes/{name}.cu"]
    found = {file for file in of_name if (ROOT / file).is_file()}
    return found.union(*(included(file) for file in found if file.endswith(".cu")))


def sources(name):
    """The files that tests of a kernel or probe depend on, except what they all do."""
    found = {f"src/kernels/{name}.rs", f"tests/kernels/{name}.rs", f"tests/primitives/{name}.rs"}
    spec = ROOT / f"codegen/specs/{name}.toml"
    op = re.search(r'^op = "(.*)"$', spec.read_text(), re.M) if spec.is_file() else None
    found.add(f"tests/reference/{op[1] if op else name}.rs")
    # Kernels' tests share files: find those that name the kernel, and those that its tests name.
    for file in (ROOT / "tests/kernels").glob("*.rs"):
        if f'"{name}"' in file.read_text():
            found.add(str(file.relative_to(ROOT)))
    found = {file for file in found if (ROOT / file).is_file()}
    for file in [file for file in found if file.startswith("tests/kernels/")]:
        for module in re.findall(r"^use super::(\w+)", (ROOT / file).read_text(), re.M):
            found.add(f"tests/kernels/{module}.rs")
    found = {file for file in found if (ROOT / file).is_file()}
    return found | device_sources(name)


def included(file, seen=None):
    """A file of csrc and all files that it includes, directly or not."""
    seen = set() if seen is None else seen
    if file not in seen:
        seen.add(file)
        for name in re.findall(r'^\s*#\s*include\s*"(.*?)"', (ROOT / file).read_text(), re.M):
            # As compilers do: relative to the including file, else to csrc.
            beside = os.path.normpath(os.path.join(os.path.dirname(file), name))
            included(beside if (ROOT / beside).is_file() else f"csrc/{name}", seen)
    return seen


# Choosing by history.


def git(*arguments):
    command = ["git", "-c", "core.quotepath=off", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def recent_changes():
    """Files that changed recently, with the time of their newest change.

    Follows the first parents only: a merge counts at its own time, with all that it brings. The five days end at the newest
    commit, so that a commit always gets the same checks."""
    end = int(git("log", "-1", "--format=%ct"))
    changed, at = {}, end
    for line in git("log", "--first-parent", "-m", "--name-only", "--format=commit %ct").splitlines():
        if match := re.fullmatch(r"commit (\d+)", line):
            at = int(match[1])
        elif line and at > end - RECENT:
            changed[line] = max(at, changed.get(line, 0))
    # Uncommitted changes are the newest.
    for line in git("status", "--porcelain", "--untracked-files=all").splitlines():
        changed[line[3:].split(" -> ")[-1]] = end + 1
    return changed


def newest_change(unit, changed):
    """Time and file of the newest recent change that the unit depends on; (0, None) if there is none."""
    def concerns(file):
        return file in unit.sources or any(s.endswith("/") and file.startswith(s) for s in unit.sources)
    return max(((at, file) for file, at in changed.items() if concerns(file)), default=(0, None))


def plan(all_steps):
    """For each step with units: the chosen units with their reasons, most urgent first, and the units that do not fit."""
    commits = int(git("rev-list", "--count", "HEAD"))
    changed = recent_changes()
    wanted = []
    units = [(step, unit) for step in all_steps for unit in step.units]
    for index, (step, unit) in enumerate(units):
        at, file = newest_change(unit, changed)
        turn = index % TURNS == commits % TURNS
        if turn or file:
            reason = f"{file} changed" if file else f"turn {commits % TURNS + 1} of {TURNS}"
            # Units whose turn it is come first, so that none waits for more than eight commits; then those with the
            # newest changes. Ties are rotated with the commits.
            wanted.append(((not turn, -at, (index - commits) % len(units)), step, unit, reason))
    chosen, left_out = {step.name: [] for step in all_steps}, {step.name: [] for step in all_steps}
    spent = sum(step.seconds for step in all_steps if not step.units)
    for _, step, unit, reason in sorted(wanted, key=lambda entry: entry[0]):
        cost = cost_of(step, unit, first=not chosen[step.name])
        if spent + cost <= LIMIT:
            spent += cost
            chosen[step.name].append((unit, reason))
        else:
            left_out[step.name].append(unit)
    return chosen, left_out


def cost_of(step, unit, first):
    # Beside a background step the others run at about half their speed.
    return (unit.seconds + (step.seconds if first else 0)) // (2 if step.background else 1)


# Running.


@dataclass
class Row:
    step: str
    seconds: float | None
    result: str
    why: list[str]


class Run:
    """Runs the steps in order, and collects the rows of the table."""

    def __init__(self, limited):
        self.begin = time.monotonic()
        self.limited = limited
        self.rows = []
        self.behind = []
        # This machine's time, relative to the estimates.
        self.slowness, self.estimated = 1.0, 0

    def remaining(self, limit):
        return limit - (time.monotonic() - self.begin) if self.limited else None

    def keep_what_fits(self, step, chosen, left_out):
        """Drops the least urgent units when the steps before took longer than expected."""
        while self.limited and chosen:
            cost = sum(cost_of(step, unit, first=i == 0) for i, (unit, _) in enumerate(chosen))
            if cost * self.slowness <= self.remaining(LIMIT):
                break
            left_out.insert(0, chosen.pop()[0])

    def step(self, step, chosen, left_out):
        self.keep_what_fits(step, chosen, left_out)
        why = reasons(step, chosen, left_out)
        if step.units and not chosen:
            self.rows.append(Row(step.name, None, "not run", why))
            return True
        command = step.command + [unit.name for unit, _ in chosen if unit.name != step.name]
        print(f"\n== {step.name}", flush=True)
        row = Row(step.name, None, "stopped", why)
        self.rows.append(row)
        begin = time.monotonic()
        if step.background:
            log = open(log_of(step), "w+")
            process = subprocess.Popen(command, cwd=ROOT, process_group=0, stdout=log, stderr=subprocess.STDOUT)
            self.behind.append((row, begin, process, log))
            return True
        passed = self.wait(subprocess.Popen(command, cwd=ROOT, process_group=0), row, begin)
        if not step.units:
            self.estimated += step.seconds
            self.slowness = max(1.0, (time.monotonic() - self.begin) / self.estimated)
        return passed

    def wait(self, process, row, begin):
        try:
            code = process.wait(timeout=self.remaining(DEADLINE))
            row.result = "passed" if code == 0 else "FAILED"
        except subprocess.TimeoutExpired:
            row.result = "FAILED: out of time"
        finally:
            # Also kills the processes that it left running.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
            row.seconds = time.monotonic() - begin
        return row.result == "passed"

    def finish(self):
        """Waits for the background steps."""
        for row, begin, process, log in self.behind:
            passed = self.wait(process, row, begin)
            log.seek(0)
            lines = log.read().splitlines()
            log.close()
            print(f"\n== {row.step}", *(lines[-3:] if passed else lines), sep="\n", flush=True)


def log_of(step):
    folder = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    folder.mkdir(exist_ok=True)
    return folder / f"{step.name}.txt"


def reasons(step, chosen, left_out):
    """The chosen units of a step by reason, one line for each reason."""
    if not step.units:
        return ["always"]
    if len(chosen) == len(step.units) and {reason for _, reason in chosen} == {ASKED}:
        return [ASKED]
    lines = {}
    for unit, reason in chosen:
        lines.setdefault(reason, []).append(unit.name)
    lines = [reason if names == [step.name] else f"{reason}: {', '.join(names)}" for reason, names in lines.items()]
    if left_out:
        rest = sum(cost_of(step, unit, first=not chosen and i == 0) for i, unit in enumerate(left_out))
        lines.append(f"no time (about {rest} s) for {', '.join(unit.name for unit in left_out)}")
    others = len(step.units) - len(chosen) - len(left_out)
    if others and len(step.units) > 1:
        lines.append(f"{others} of {len(step.units)} unchanged")
    return lines or ["unchanged"]


def print_table(rows, total):
    print(f"\n{'step':15} {'seconds':>7}  {'result':20} chosen")
    for row in rows:
        seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
        head = f"{row.step:15} {seconds:>7}  {row.result:20} "
        for i, line in enumerate(row.why):
            head = head if i == 0 else " " * len(head)
            print(textwrap.fill(line, 140, initial_indent=head, subsequent_indent=" " * (len(head) + 2)))
    print(f"{'all':15} {total:>7.0f}", flush=True)


def main(arguments):
    if arguments in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    only_plan = arguments[:1] == ["--plan"]
    asked = arguments[only_plan:]
    all_steps = steps()
    names = [step.name for step in all_steps]
    if unknown := [name for name in asked if name not in [*names, "all"]]:
        sys.exit(f".ci/run: expected `all` or steps of {', '.join(names)}; found {unknown[0]}")
    limited = not asked
    if limited:
        chosen, left_out = plan(all_steps)
    else:
        all_steps = [step for step in all_steps if step.name in asked or "all" in asked]
        chosen = {step.name: [(unit, ASKED) for unit in step.units] for step in all_steps}
        left_out = {step.name: [] for step in all_steps}
    if "all" in asked:
        os.environ["BURRSTONE_TEST_ALL"] = "1"

    if only_plan:
        rows, total = [], 0
        for step in all_steps:
            units = chosen[step.name]
            seconds = None
            if units or not step.units:
                seconds = step.seconds + sum(unit.seconds for unit, _ in units)
                total += seconds // (2 if step.background else 1)
            rows.append(Row(step.name, seconds, "" if seconds is not None else "not run",
                            reasons(step, units, left_out[step.name])))
        print_table(rows, total)
        return 0

    run = Run(limited)
    try:
        stopped = None
        for step in all_steps:
            if stopped:
                run.rows.append(Row(step.name, None, "not run", [f"{stopped} failed"]))
            elif not run.step(step, chosen[step.name], left_out[step.name]) and step.vital:
                stopped = step.name
        run.finish()
    finally:
        for _, _, process, _ in run.behind:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        print_table(run.rows, time.monotonic() - run.begin)
    return int(any(row.result not in ("passed", "not run") for row in run.rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
