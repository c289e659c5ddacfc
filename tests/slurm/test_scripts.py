"""The shell of slurm/ without Slurm: what a job decides by the words of its run, with a srun, scontrol and scancel of our own."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from kdscale.errors import KdscaleError

SCRIPTS = Path(__file__).resolve().parents[2] / "slurm"

# What a step does is in the variable STEP; {tmp} is the test's folder.
FAKES = {
    "scontrol": """
        case "$*" in
            *"show job"*) echo "JobId=7 JobName=x JobState=${JOB_STATE:-RUNNING} Requeue=1 Command=/else/where/train.sbatch x" ;;
            *"show node"*) echo "NodeName=a1 Arch=x NodeAddr=10.0.0.1 NodeHostName=x" ;;
            *hostnames*) printf 'a1\\na2\\n' ;;
            requeue*) echo "$*" >>"$HERE/asked"; exit "${REFUSED:-0}" ;;
        esac""",
    "scancel": 'echo "scancel $*" >>"$HERE/asked"; kill -TERM "$(cat "$HERE/step.pid")"',
    "srun": """
        echo "srun $* | $MASTER_ADDR:$MASTER_PORT" >>"$HERE/asked"
        echo $$ >"$HERE/step.pid"
        echo 7.0 >"$LOGS/step"
        verdict() { printf '{\\n "code": %s,\\n "reason": "\\\\"code\\\\": 3"\\n}\\n' "$1" >"$OUT/verdict.json"; }
        eval "$STEP" """,
}
STOPPED = "trap 'verdict 75; exit 143' TERM; touch $HERE/runs; while :; do sleep 0.05; done"


class Job:
    """A job's environment; every start of it is a run of train.sbatch."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        (folder / "bin").mkdir()
        for name, text in FAKES.items():
            path = folder / "bin" / name
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HERE": str(folder),
            "OUT": str(self.out),
            "KDSCALE_SLURM": str(SCRIPTS),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "a[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_CPUS_PER_NODE": "16,8",
        }

    def begin(self, step: str, **variables: str) -> subprocess.Popen[str]:
        self.out.mkdir(exist_ok=True)
        words = ["bash", str(SCRIPTS / "train.sbatch"), "recipe", "--out", f"{self.out}/", "seed=1"]
        return subprocess.Popen(
            words,
            env=self.environment | variables | {"STEP": step},
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def start(self, step: str, **variables: str) -> tuple[int, str]:
        """Exit code and what it said."""
        process = self.begin(step, **variables)
        _, said = process.communicate(timeout=30)
        return process.returncode, said

    def saved(self, step: int) -> None:
        (self.out / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)

    @property
    def asked(self) -> list[str]:
        """What was asked of Slurm."""
        path = self.folder / "asked"
        return path.read_text().splitlines() if path.exists() else []

    def requeues(self) -> int:
        return sum(line == "requeue 7" for line in self.asked)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.mark.parametrize(
    "path", sorted(p for p in SCRIPTS.iterdir() if p.suffix in (".sh", ".sbatch", ".env")), ids=lambda p: p.name
)
def test_every_script_is_whole(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize(
    ("code", "starts", "stuck", "answer"),
    [
        (0, 1, 0, "end"),
        (64, 1, 0, "end"),
        (71, 1, 0, "end"),
        (76, 1, 0, "end"),
        (75, 1, 0, "again"),
        (75, 50, 9, "again"),
        (75, 51, 0, "end"),
        (70, 1, 1, "again"),
        (72, 1, 3, "again"),
        (70, 4, 4, "end"),
        (72, 51, 1, "end"),
    ],
)
def test_what_follows_a_code(job: Job, code: int, starts: int, stuck: int, answer: str) -> None:
    text = f". {SCRIPTS}/site.env; . {SCRIPTS}/job.sh; decide {code} {starts} {stuck}"
    told = subprocess.check_output(["bash", "-c", text], env=job.environment, text=True)
    assert told.split()[0] == answer


def test_a_finished_run_ends_the_job_and_its_step_had_all_nodes_and_cores(job: Job) -> None:
    assert job.start("verdict 0")[0] == 0
    assert job.asked == [
        f"srun --kill-on-bad-exit=0 --wait=150 --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=8 bash {SCRIPTS}/task.sh"
        f" ranks train recipe --out {job.out}/ seed=1 | 10.0.0.1:20007"
    ]


def test_without_a_launcher_every_rank_is_a_task(job: Job) -> None:
    job.start("verdict 0", KDSCALE_LAUNCH="srun", SLURM_GPUS_ON_NODE="4", KDSCALE_CONTAINER="box exec --gpu")
    assert "--ntasks=8 --ntasks-per-node=4 --cpus-per-task=2 box exec --gpu bash" in job.asked[0]


def test_the_verdict_counts_and_not_the_code_of_the_launcher(job: Job) -> None:
    code, said = job.start("verdict 75; exit 1")
    assert (code, job.requeues()) == (0, 1)
    assert "ended with 75 at step -1 (the step's own exit code: 1)" in said


def test_a_verdict_of_an_earlier_start_is_not_believed(job: Job) -> None:
    job.start("verdict 75; exit 1")
    _, said = job.start("exit 1")
    assert "ended with 70" in said


def test_faults_without_a_newer_save_come_to_an_end(job: Job) -> None:
    job.saved(12)
    assert [job.start("verdict 70; exit 1")[0] for _ in range(4)] == [0, 0, 0, 70]
    assert job.requeues() == 3


def test_a_newer_save_begins_the_count_anew(job: Job) -> None:
    for step in (3, 6, 9, 12, 15):
        job.saved(step)
        assert job.start("exit 137")[0] == 0
    assert job.requeues() == 5


def test_no_job_starts_for_ever(job: Job) -> None:
    codes = [job.start("verdict 75; exit 1", KDSCALE_RESTARTS="2")[0] for _ in range(4)]
    assert codes == [0, 0, 75, 70]
    assert job.requeues() == 2


@pytest.mark.parametrize(
    "words",
    [
        "echo '  exitcode  : 64 (pid: 12)' >$LOGS/launcher-1.log; exit 1",
        "echo 'srun: error: n1: task 1: Exited with exit code 64' >&2; exit 143",
    ],
)
def test_what_no_retry_cures_is_found_without_a_verdict(job: Job, words: str) -> None:
    assert job.start(words)[0] == 64
    assert job.requeues() == 0


def test_a_warning_is_handed_to_the_step_and_the_job_starts_again(job: Job) -> None:
    process = job.begin(STOPPED)
    runs(job)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, job.asked[1:]) == (0, ["scancel --signal=TERM 7.0", "requeue 7"])
    assert "received USR1" in said


def test_a_job_that_slurm_ends_is_not_requeued_by_itself(job: Job) -> None:
    """Slurm tells the step itself: a second word from here would make it drop its save."""
    process = job.begin(STOPPED, JOB_STATE="COMPLETING")
    runs(job)
    process.send_signal(signal.SIGTERM)
    os.kill(int((job.folder / "step.pid").read_text()), signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, len(job.asked)) == (75, 1)
    assert "Slurm is ending this job itself (COMPLETING)" in said


def test_a_refused_requeue_ends_with_the_code_of_the_run(job: Job) -> None:
    code, said = job.start("verdict 75; exit 1", REFUSED="1")
    assert code == 75
    assert "requeue was refused" in said


def test_an_element_of_an_array_is_requeued_by_its_name(job: Job) -> None:
    job.start("verdict 75; exit 1", SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="0")
    assert job.asked[-1] == "requeue 5_0"


def test_an_element_takes_its_run_from_the_list(job: Job) -> None:
    sweep = job.folder / "sweep"
    sweep.mkdir()
    run = {"out": str(job.out), "words": ["recipe", "a=[1, 2]"], "exported": False, "after": []}
    (sweep / "sweep.json").write_text(json.dumps({"folder": str(job.folder), "runs": [run | {"out": "other"}, run]}))
    words = ["bash", str(SCRIPTS / "sweep.sbatch"), str(sweep)]
    variables = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "1", "STEP": "verdict 0", "KDSCALE_PYTHON": sys.executable}
    job.out.mkdir()
    subprocess.run(words, env=job.environment | variables, check=True)
    assert f"ranks train recipe a=[1, 2] --out {job.out} |" in job.asked[0]


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sweep", SCRIPTS / "sweep.py")
    assert spec is not None
    assert spec.loader is not None
    sweep = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sweep)
    return sweep


@pytest.mark.parametrize("words", [[], ["--out"], ["--element", "x", "--out", "runs"], ["--nope", "--out", "runs"]])
def test_words_that_are_off_are_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words])
    assert loaded().main() == 64
    said = capsys.readouterr().err
    assert said.startswith("sweep.py: ")
    assert len(said.splitlines()) == 1


def test_pupils_wait_for_their_teachers(job: Job) -> None:
    """Those that are missing are elements of an array before them; one that has failed is named by whoever needs it."""
    sweep = loaded()
    script = f"{SCRIPTS}/sweep.sbatch runs/a"
    assert sweep.lines(5, 2, Path("runs/a")) == [
        f"first=$(sbatch --parsable --array=0-1%1 {script})",
        f"sbatch --array=2-4%8 --dependency=afterany:$first {script}",
    ]
    teacher = {"out": "t", "words": ["big"], "exported": True, "after": []}
    pupil = {"out": "p", "words": ["small"], "exported": False, "after": [0]}
    (job.folder / "sweep.json").write_text(json.dumps({"folder": str(job.folder), "runs": [teacher, pupil]}))
    with pytest.raises(KdscaleError, match="p needs the teacher in t, which is not trained"):
        sweep.element(job.folder, 1)
    (job.folder / "t" / "export").mkdir(parents=True)
    (job.folder / "t" / "export" / "config.json").touch()
    assert sweep.element(job.folder, 0) == [str(job.folder), "t", "export", "big"]
    assert sweep.element(job.folder, 1) == [str(job.folder), "p", "", "small"]
    with pytest.raises(KdscaleError, match=r"sweep.json has no run 2: write it by"):
        sweep.element(job.folder, 2)


def runs(job: Job) -> None:
    """Waits until the step has set its traps."""
    end = time.monotonic() + 20
    while not (job.folder / "runs").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
