"""The command line as a user meets it: exit codes, messages, what is left behind; and the Makefile in front of it."""

import dataclasses
import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from photos import put

from dap import save_compact
from pipeline import __main__ as cli
from pipeline import files, options, sessions, stages
from pipeline.data import download
from pipeline.data.catalog import KNOWN
from pipeline.errors import EnvironmentLacks, Interrupted
from pipeline.train import checkpoints

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command line in an empty folder; returns its exit code and all it wrote."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["pipeline", *arguments])
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return int(ended.value.code or 0), " ".join((captured.out + captured.err).split())

    return command


def test_a_folder_of_photos_is_shown_before_anything_is_trained(run, monkeypatch):
    names = [f"{split}/{label}/{n}.jpg" for split in ("Train", "Test") for label in ("cup", "jug") for n in range(5)]
    put(Path("photos"), *names, "Train/cup/notes.txt")
    shutil.copy("photos/Test/cup/0.jpg", "photos/Train/jug/again.jpg")
    kept = []

    def told(result):
        return result[0], " ".join(result[1].replace("│", " ").split())  # without a table's lines

    monkeypatch.setattr(
        stages, "run_training", lambda context: (kept.append(context), print("trained", file=sys.stderr))
    )
    monkeypatch.setattr(stages, "report", lambda context: None)
    code, out = told(run("prune", "DATASET=photos"))
    assert code == 0 and out.index("Train/jug/again.jpg = Test/cup/0.jpg") < out.index("trained")
    for said in ("a fifth of Train/", "2 classes: cup, jug", "Top-1 is reported of test", ".txt files"):
        assert said in out
    assert kept[0].run.config.dataset == "folder:photos"
    assert len(kept[0].dataset.train.labels) == 8
    code, out = told(run("prune", "DATASET=photos", "KEEP_DUPLICATES=1", "RUN=other"))
    assert code == 0 and "kept: Train/jug/again.jpg" in out
    assert len(kept[1].dataset.train.labels) == 9


def test_the_demo_trains_what_its_page_says(run, monkeypatch):
    kept = []
    monkeypatch.setattr(sessions, "train", lambda folder, config, *_: kept.append(config))
    monkeypatch.setattr(sessions, "deploy", lambda *_: 0)
    assert run("demo")[0] == 0
    run("prune", "--dataset", "digits", "--sparsity", "0.75", "--no-distill")
    demo, pruned = kept
    assert demo == pruned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "--sparsity", "0"], "sparsity must be a number strictly between 0 and 1, got 0"),
        (["prune", "--sparsity", "1"], "sparsity must be a number strictly between 0 and 1, got 1"),
        (["prune", "--sparsity", "1.5"], "sparsity must be a number strictly between 0 and 1, got 1.5"),
        (["prune", "--sparsity", "nan"], "sparsity must be a number strictly between 0 and 1"),
        (["prune", "--sparsity", "abc"], "'--sparsity': Input should be a valid number"),
        (["prune", "--sparsity", "0.999"], "0.98"),
        (["prune", "--dataset", "cifar11"], "DATASET=cifar11 is unknown. Known: digits"),
        (["prune", "--model", "deit_nano"], "MODEL=deit_nano is unknown. Known: "),
        (["prune", "--model", "resnet18"], "MODEL=resnet18 is a ResNet"),
        (["prune", "--method", "magic"], "METHOD=magic is unknown. Known: dense, dap, uniform"),
        (["prune", "--epochs", "0"], "epochs=0 must be 1 or more"),
        (["prune", "EARLY_STOP=0"], "EARLY_STOP=0 must be a number of epochs, 1 or more"),
        (["prune", "BALANCED=maybe"], "BALANCED=maybe is neither on (1) nor off (0)"),
        (["prune", "COMPILE=2"], "COMPILE=2 is neither on (1) nor off (0)"),
        (["prune", "BATCH_SIZE=0"], "batch_size=0 must be 1 or more"),
        (["prune", "--seed", "-1"], "SEED=-1 must be 0 or more"),
        (["prune", "--run", "../elsewhere"], "must be a plain name"),
        (["prune", "--model-path", "none.safetensors"], "MODEL_PATH=none.safetensors: there is no such file"),
        (["prune", "--model-path", "x", "--from-scratch"], "exclude each other"),
        (["prune", "--distill", "--dense-epochs", "0"], "--distill learns from the dense reference: it needs one"),
        (["prune", "--distill", "--method", "dense"], "a METHOD that prunes"),
        (["compare", "--dataset", "digits", "--methods", "dap:magic"], "'dap:magic' is unknown. Known: dense, dap"),
        (["compare", "--dataset", "digits", "--once", "magic"], "'magic' is unknown"),
        (["compare", "--dataset", "digits", "--seeds", "a b"], "SEEDS='a b' must be whole numbers"),
        (["compare", "--dataset", "digits", "--seeds", ""], "SEEDS='' must be whole numbers"),
        (["compare", "--dataset", "digits", "--jobs", "0"], "'--jobs'"),
        (["deploy"], "there is no run in runs"),
        (["deploy", "--run", "nothing"], "there is no run runs/nothing"),
        (["stage", "colour", "--run", "nothing"], "there is no run runs/nothing"),
        (["pretrain", "--data", "folder:nowhere"], "nowhere does not exist"),
        (["prun"], "No such command 'prun'"),
        (["prune", "--speed", "3"], "No such option"),
    ],
)
def test_wrong_use_is_exit_2_with_a_reason(run, arguments, message):
    code, text = run(*arguments)
    assert message in text
    assert code == 2
    assert "Traceback" not in text


def test_a_wrong_command_does_not_block_the_name(run, monkeypatch):
    """After a sparsity that cannot be reached, the same RUN takes one that can."""
    assert run("prune", "--sparsity", "0.999", "--run", "mine")[0] == 2
    monkeypatch.setattr(stages, "run_training", lambda context: None)
    monkeypatch.setattr(stages, "report", lambda context: "not_measured")
    code, text = run("prune", "--sparsity", "0.6", "--run", "mine")
    assert code == 0, text


def test_a_command_for_a_run_that_another_works_on_changes_nothing(run):
    assert run("prune", "--sparsity", "0.999", "--run", "mine")[0] == 2  # leaves a run folder without results

    def contents() -> dict[Path, tuple[int, bytes]]:
        found = (path for path in Path("runs").rglob("*") if path.is_file() and path.name != ".lock")
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    before = contents()
    with files.locked(Path("runs/mine")):
        for verb in (["prune"], ["prune", "--seed", "7"], ["deploy"], ["bench"], ["hub"], ["stage", "report"]):
            code, text = run(*verb, "--run", "mine")
            assert (code, "runs/mine is in use by another process" in text) == (2, True), text
    assert contents() == before


@pytest.mark.parametrize("option", ["--dataset", "--model", "--method"])
def test_a_mistyped_name_leaves_no_folder(run, option, tmp_path):
    assert run("prune", option, "nonsense")[0] == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["toaster", "HOST"])
def test_unknown_target_lists_the_known_ones(run, target, tmp_path, monkeypatch):
    assert run("prune", "--sparsity", "0.999", "--run", "mine")[0] == 2  # leaves a run folder without results
    code, text = run("deploy", "--target", target, "--run", "mine")
    assert (code, f"TARGET={target} is unknown. Known: host" in text) == (2, True)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (EnvironmentLacks("no network"), 3, "no network"),
        (Interrupted("prune stopped at step 3 of 9"), 130, "repeat the command to go on"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x/log.jsonl"),
            2,
            "No space left on device (runs/x/log",
        ),
        (OSError(errno.EROFS, "Read-only file system"), 2, "Read-only file system"),
        (RuntimeError("bug"), 70, "a defect in this program"),
        (OSError(errno.EIO, "Input/output error"), 70, "a defect in this program"),
    ],
)
def test_exit_codes(run, monkeypatch, error, code, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(stages, "run_training", fail)
    got, text = run("prune")
    assert message in text
    assert got == code


def test_ctrl_c_outside_of_training(run, monkeypatch):
    monkeypatch.setattr(stages, "run_training", lambda context: os.kill(os.getpid(), signal.SIGINT))
    code, text = run("prune")
    assert (code, "repeat the command to go on" in text) == (130, True)


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 1), ("not_measured", 3)])
def test_a_missed_budget_is_exit_1(run, monkeypatch, verdict, code):
    assert run("prune", "--sparsity", "0.999", "--run", "mine")[0] == 2
    monkeypatch.setattr(stages, "run_deploying", lambda context, target, **_: verdict)
    monkeypatch.setattr("targets.strict.read_json", lambda path, kind: {})
    monkeypatch.setattr("pipeline.report.report.summary_table", lambda report, target: "table")
    monkeypatch.setattr("pipeline.sessions.Run.open", lambda folder: None)
    assert run("deploy", "--run", "mine")[0] == code


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(run, tmp_path):
    tmp_path.chmod(0o500)
    try:
        code, text = run("prune")
    finally:
        tmp_path.chmod(0o700)
    assert (code, "cannot write" in text) == (2, True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(small_disk):
    """Every way in which the product writes meets it as an OSError, leaves no fragment, and keeps the old file."""
    big = torch.zeros(100_000)
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=4
    ).eval()
    (small_disk / "checkpoint.pt").write_text("old")
    for write in (
        lambda: checkpoints.save(small_disk / "checkpoint.pt", {"big": big}),
        lambda: files.write_json(small_disk / "x.json", big.tolist()),
        lambda: save_compact(model, small_disk / "model"),
    ):
        with pytest.raises(OSError) as raised:
            write()
        assert raised.value.errno == errno.ENOSPC
    assert (small_disk / "checkpoint.pt").read_text() == "old"
    assert not list(small_disk.rglob("*.tmp"))


@pytest.mark.parametrize("verb", ["", "demo", "prune", "deploy", "stage", "pretrain"])
def test_help_tells_the_exit_codes(run, verb):
    code, text = run(*([verb] if verb else []), "--help")
    assert code == 0
    assert "1 budget missed" in text


def make(*arguments: str, **environment: str) -> str:
    """What make prints; as a make of its own, also when the tests were started by one."""
    alone = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))} | environment
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=alone, capture_output=True, text=True, check=True)
    return done.stdout


def forwarded(*arguments: str, **environment: str) -> list[str]:
    """What `make` gives to `python -m pipeline`."""
    return shlex.split(make("-n", *arguments, **environment).split("-m pipeline ")[1])


def test_the_makefile_forwards_only_what_was_given():
    given = ["DATASET=digits", "MODEL_PATH=a b.safetensors", "SPARSITY=0.5"]
    assert forwarded("prune", *given) == ["prune", *given]
    assert forwarded("demo", MODEL="leak", DATA="leak", SEED="7") == ["demo"]  # exported by some shell
    assert forwarded("demo", "PYTHON=python3", "SEED=7") == ["demo", "SEED=7"]  # the Makefile's own


@pytest.mark.parametrize(
    "value",
    ["a b", "it's", 'say "x"', "$HOME", "$(shell id)", "a=b", "a,b", "(a)", "#1", "back\\slash", "*", "é", "`id`"],
)
def test_any_value_arrives_as_it_was_typed(value):
    assert forwarded("prune", f"DATASET=folder:{value}") == ["prune", f"DATASET=folder:{value}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "EPOCH=1"], "make prune has no option EPOCH. Did you mean EPOCHS?"),
        (["prune", "dataset=mine"], "make prune has no option dataset. Did you mean DATASET?"),
        (["deploy", "SPARSITY=0.5"], "make deploy has no option SPARSITY. "),
        (["demo", "DATASET=digits"], "make demo has no option DATASET. "),
        (["prune", "FROM_SCRATCH=maybe"], "FROM_SCRATCH=maybe is neither on (1) nor off (0)"),
        (["stage", "STAGE=colour", "RUN=nothing"], "there is no run runs/nothing"),
    ],
)
def test_makes_way_to_give_options_is_refused_where_it_is_wrong(run, arguments, message):
    code, text = run(*arguments)
    assert (code, message in text) == (2, True), text


def test_makes_way_to_give_options(capsys):
    given = ["prune", "DATASET=a=b", "SPARSITY=", "FROM_SCRATCH=1", "RELEASED=0", "DISTILL=0", "--seed", "3"]
    assert options.from_make(cli.app, given) == [
        *("prune", "--dataset", "a=b", "--from-scratch", "--no-distill", "--seed", "3")
    ]
    assert options.from_make(cli.app, ["stage", "STAGE=compact", "RUN=x"]) == ["stage", "compact", "--run", "x"]
    assert options.from_make(cli.app, ["--help"]) == ["--help"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "--sparsity", "1.5"],
        ["prune", "--lr", "-1"],
        ["prune", "--model", "deit_nano"],
        ["prune", "--model", "resnet18"],
        ["prune", "--method", "magic"],
        ["prune", "--target", "toaster"],
        ["prune", "--subset", "many"],
        ["prune", "--dataset", "folder:nowhere"],
        ["prune", "--model-path", "none.safetensors"],
        ["deploy", "--run", "nothing"],
        ["app", "--target", "mac"],
        ["profile", "--model", "deit_nano"],
        ["compare", "--dataset", "digits", "--methods", "magic"],
        ["pretrain", "--data", "folder:nowhere"],
    ],
)
def test_a_refused_option_loads_no_torch(arguments, tmp_path):
    """Loading it takes seconds; counted in modules and not in time, which depends on the machine."""
    program = (
        "import sys\nfrom pipeline.__main__ import main\n"
        f"sys.argv = ['pipeline', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    print(end.code, sorted({'torch', 'timm', 'numpy', 'cv2'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.stdout.decode().split(maxsplit=1)[0] == "2", done.stderr
    assert not {"torch", "timm"} & set(re.findall(r"\w+", done.stdout.decode().split(maxsplit=1)[1]))


def test_make_help_names_every_verb():
    text = make("help")
    for verb in ("demo", "prune", "deploy", "stage", "pretrain", "test", "check"):
        assert f"make {verb} " in text


def test_data_without_a_network_is_exit_3_with_the_steps(run, monkeypatch):
    known = KNOWN["cifar10"]
    archive = dataclasses.replace(known.archives[0], url="http://nowhere.invalid/cifar.tar.gz")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(KNOWN, "cifar10", dataclasses.replace(known, archives=(archive,)))
    code, text = run("data", "--dataset", "cifar10")
    assert code == 3
    assert "3. Repeat: make data DATASET=cifar10" in text


def test_data_says_what_to_run_next(run, monkeypatch):
    monkeypatch.setattr(download, "fetch", lambda known, folder, progress: progress("get x.tar", 1, 1))
    code, text = run("data", "--dataset", "cifar10", "--data", "here")
    assert code == 0
    assert "next: make prune DATASET=cifar10 DATA=here SPARSITY=0.75" in text
