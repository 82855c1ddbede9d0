"""Models by their names on the hub, against a server on 127.0.0.1 that answers as the hub does."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save

from pipeline import __main__ as cli
from pipeline import hub, model_names, presets, sessions
from pipeline.experiments import commands
from pipeline.model_names import DINO_SMALL

ROOT = Path(__file__).parent.parent
TIMMS, DEIT, OWN = "timm/deit_tiny_patch16_224.fb_in1k", "facebook/deit-tiny-patch16-224", "someone/birds"
WORDS = {"model_type": "vit", "hidden_size": 192, "num_hidden_layers": 12, "patch_size": 16, "image_size": 224}
CONFIGS = {
    OWN: {**WORDS, "architectures": ["ViTForImageClassification"], "hidden_act": "gelu", "id2label": {"0": "a wren"}},
    "someone/large": {**WORDS, "image_size": 256},
    "someone/distilled": {**WORDS, "model_type": "deit", "image_size": [384, 384]},
    "someone/dino": {**WORDS, "model_type": "dinov2", "hidden_size": 384, "patch_size": 14, "image_size": 518},
    "someone/registers": {**WORDS, "model_type": "dinov2_with_registers", "hidden_size": 768, "patch_size": 14},
    "someone/in-timm": {"architecture": "vit_small_patch16_384", "num_classes": 7, "pretrained_cfg": {"tag": "mine"}},
    "someone/bert": {"model_type": "bert", "hidden_size": 768},
    "someone/nothing": {},
    "someone/odd": {**WORDS, "hidden_size": 200},
    "someone/quick": {**WORDS, "hidden_act": "quick_gelu"},
    "someone/wrong": {**WORDS, "hidden_size": "large"},
}


@pytest.fixture(scope="module")
def server():
    """Weights of DeiT-tiny whose last norm is 3.5, config.json of some repositories, and one that breaks off."""
    with torch.random.fork_rng():
        state = timm.create_model("deit_tiny_patch16_224", pretrained=False).state_dict()
    state["norm.weight"] = torch.full((192,), 3.5)
    weights = save(state)
    files = {f"{name}/model.safetensors": weights for name in (TIMMS, DEIT, OWN, "broken/off")}
    files |= {f"{name}/config.json": json.dumps(config).encode() for name, config in CONFIGS.items()}
    files["someone/not-json/config.json"] = b"{"
    files["someone/bare/README.md"] = b"# nothing here"
    repositories = {"/".join(name.split("/")[:2]) for name in files}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            repository, _, file = self.path.lstrip("/").partition("/resolve/main/")
            content = files.get(f"{repository}/{file}")
            self.send_response(200 if content else 404)
            if content:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            else:
                self.send_header("X-Error-Code", "EntryNotFound" if repository in repositories else "RepoNotFound")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if content and self.command == "GET":
                self.wfile.write(content[: 1000 if repository == "broken/off" else None])
                self.close_connection = True

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def in_process(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess:
    """The hub client reads its settings when it is imported, so it needs a process of its own. It does not pause."""
    keep = {"PATH": "/usr/bin:/bin", "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    code = "import time\ntime.sleep = lambda seconds: None\n" + code
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**keep, **environment}, capture_output=True, text=True, timeout=120
    )


TOLD = """
from pipeline.errors import EnvironmentLacks
for name in {names!r}:
    try:
        from pipeline import hub
        print(name, *{call})
    except (ValueError, EnvironmentLacks) as error:
        print(name, type(error).__name__, error)
"""


def told(names, home: Path, call: str = "hub.resolve(name)", **environment: str) -> dict[str, str]:
    """What a call makes of each name."""
    done = in_process(TOLD.format(names=list(names), call=call), home, **environment)
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


# names that say enough


@pytest.mark.parametrize(
    ("model", "name", "source"),
    [
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224", None),
        ("deit_tiny_patch16_224.fb_in1k", "deit_tiny_patch16_224.fb_in1k", None),
        (TIMMS, "deit_tiny_patch16_224.fb_in1k", None),
        (f"hf-hub:{TIMMS}", "deit_tiny_patch16_224.fb_in1k", None),
        (f"hf_hub:{TIMMS}", "deit_tiny_patch16_224.fb_in1k", None),
        (DEIT, "deit_tiny_patch16_224", f"hf-hub:{DEIT}"),
        (f"hf-hub:{DEIT}", "deit_tiny_patch16_224", f"hf-hub:{DEIT}"),
        ("facebook/deit-base-distilled-patch16-384", "deit_base_distilled_patch16_384", ...),
        ("google/vit-base-patch16-224", "vit_base_patch16_224", ...),
        ("google/vit-base-patch16-224-in21k", "vit_base_patch16_224", ...),
        ("google/vit-large-patch32-384", "vit_large_patch32_384", ...),
        ("facebook/dinov2-small", DINO_SMALL, ...),
        ("facebook/dinov2-base-imagenet1k-1-layer", "vit_base_patch14_dinov2", ...),
        ("facebook/dinov2-with-registers-small", "vit_small_patch14_reg4_dinov2", ...),
        ("facebook/dino-vits16", "vit_small_patch16_224.dino", ...),
        ("facebook/dino-vitb8", "vit_base_patch8_224.dino", ...),
    ],
)
def test_well_known_names_need_no_network(model, name, source):
    assert hub.resolve(model) == (name, f"hf-hub:{model}" if source is ... else source)
    model_names.check_name(name)
    assert timm.is_model(name.split(".")[0])
    assert "." not in name or name in timm.list_pretrained(name)


def test_a_path_is_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"is on this machine: name the model by MODEL, its weights by MODEL_PATH="):
        hub.resolve(str(tmp_path))


def test_weights_that_timm_does_not_know_are_told_with_those_that_it_does():
    from pipeline.models import create_model

    with pytest.raises(ValueError, match=r"timm knows no weights 'mine' of deit_tiny_patch16_224. Known: .*fb_in1k"):
        create_model("deit_tiny_patch16_224.mine", 10)


# a repository's own config.json


def test_a_repositorys_config_says_which_model_it_is(server, tmp_path):
    found = told([*CONFIGS, "someone/bare", "nobody/here", "a/b/c", "someone/not-json"], tmp_path, HF_ENDPOINT=server)
    for model, name in (
        (OWN, "vit_tiny_patch16_224"),
        ("someone/large", "vit_tiny_patch16_224"),
        ("someone/distilled", "deit_tiny_distilled_patch16_224"),
        ("someone/dino", DINO_SMALL),
        ("someone/registers", "vit_base_patch14_reg4_dinov2"),
        ("someone/in-timm", "vit_small_patch16_384"),
    ):
        assert found[model] == f"{name} hf-hub:{model}"
    for model, message in (
        ("someone/bert", "is a bert; of transformers' models only vit, deit, dinov2, dinov2_with_registers can be"),
        ("someone/nothing", "is a model of an unknown kind"),
        ("someone/odd", "is a vit of width 200 with patches of 16 pixels: timm has no such model"),
        ("someone/quick", "activates by quick_gelu; of transformers' models only gelu is known"),
        ("someone/wrong", "hidden_size: "),
        ("someone/not-json", "config.json"),
        ("someone/bare", "the repository has no config.json"),
        ("nobody/here", "there is no repository nobody/here on the hub"),
        ("a/b/c", "can be no repository of the hub"),
    ):
        assert found[model].startswith(("ValueError ", "Fault ")) and message in found[model], found[model]


def test_what_is_here_already_needs_no_network(server, tmp_path):
    before = told([OWN], tmp_path, HF_ENDPOINT=server)
    assert told([OWN], tmp_path, HF_HUB_OFFLINE="1") == before


# their weights

WEIGHTS = "(float(create_model('deit_tiny_patch16_224', 5, weights={}).norm.weight[0]),)"
CREATE = (
    "from pipeline.models import create_model; print(float(create_model('deit_tiny_patch16_224', 5).norm.weight[0]))"
)


@pytest.mark.slow
def test_weights_from_the_hub(server, tmp_path):
    done = in_process(CREATE, tmp_path / "home", HF_ENDPOINT=server)
    assert done.stdout.strip() == "3.5", done.stderr


def test_weights_of_a_repository(server, tmp_path):
    call = "[__import__('pipeline.models').models.create_model('deit_tiny_patch16_224', 5, weights=hub.SOURCE + name)" \
        ".norm.weight[0].item()]"  # fmt: skip
    found = told([DEIT, "someone/bare", "broken/off"], tmp_path, call, HF_ENDPOINT=server)
    assert found[DEIT] == "3.5"
    assert "ValueError hub repository someone/bare has no model.safetensors and no pytorch" in found["someone/bare"]
    assert "EnvironmentLacks hub repository broken/off could not be fetched" in found["broken/off"]


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_offline_names_the_ways_out(tmp_path, environment):
    found = told([OWN, "deit_tiny_patch16_224"], tmp_path,
                 "hub.resolve(name) if '/' in name else [hub.fetched(hub.SOURCE + 'facebook/x', name)]",
                 **environment)  # fmt: skip
    for name, repository in ((OWN, OWN), ("deit_tiny_patch16_224", "facebook/x")):
        assert found[name].startswith(f"EnvironmentLacks hub repository {repository} could not be fetched")
        assert (
            f"go online once and repeat the command, or download model.safetensors of hub repository {repository}"
            in (found[name])
        )
    assert "MODEL=NAME, as timm calls it, MODEL_PATH=model.safetensors" in found[OWN]
    assert "MODEL=deit_tiny_patch16_224 MODEL_PATH=model.safetensors" in found["deit_tiny_patch16_224"]


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_HUB_OFFLINE": "1"},
        {"HF_ENDPOINT": "http://127.0.0.1:9"},
    ],
)
def test_offline_names_the_two_ways_out(tmp_path, environment):
    # the hub client repeats a refused connection, with pauses that add up to most of a minute
    done = in_process(
        "import time\ntime.sleep = lambda seconds: None\n"
        f"from pipeline.errors import EnvironmentLacks\ntry:\n    {CREATE.replace('; ', chr(10) + '    ')}\n"
        "except EnvironmentLacks as error:\n    print(error)",
        tmp_path / "home",
        **environment,
    )
    assert "go online once" in done.stdout, done.stderr
    assert "MODEL_PATH=file.safetensors" in done.stdout
    assert "timm/deit_tiny_patch16_224.fb_in1k" in done.stdout


# on the command line


@pytest.mark.parametrize(
    ("options", "weights"),
    [([], f"hf-hub:{DEIT}"), (["MODEL_PATH=mine.pth"], "mine.pth"), (["FROM_SCRATCH=1"], None)],
)
def test_prune_begins_with_the_repositorys_weights_unless_others_are_named(monkeypatch, tmp_path, options, weights):
    runs = []
    monkeypatch.setattr(sessions, "train", lambda folder, config, *_: runs.append((folder, config)))
    monkeypatch.setattr("sys.argv", ["pipeline", "prune", "DATASET=digits", f"MODEL={DEIT}", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    ((folder, config),) = runs
    assert (config.model, config.model_path, config.from_scratch) == (
        "deit_tiny_patch16_224", weights, weights is None)  # fmt: skip
    assert folder.name == presets.run_name(config)


def test_weights_that_are_no_file_are_told_before_a_folder_is_made(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pipeline", "prune", "DATASET=digits", "MODEL_PATH=none.safetensors"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "MODEL_PATH=none.safetensors: there is no such file" in " ".join(capsys.readouterr().err.split())
    assert not any(tmp_path.iterdir())


def test_a_comparison_begins_with_them_too():
    base, root = commands._compared("digits", DEIT, None, None, img_size=160)
    assert (base.model, base.model_path, base.img_size) == ("deit_tiny_patch16_224", f"hf-hub:{DEIT}", 160)
    assert "deit_tiny_patch16_224-160px" in root.name
