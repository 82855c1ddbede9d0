"""Two machines that train together: network namespaces with an address, a name and processes of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from test_pipeline import wait_for_step
from test_processes import COMMAND, GLOO
from test_train import ROOT

from pipeline.train import checkpoints

UNSHARE = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def missing() -> str:
    """Why there are no namespaces here; empty if there are."""
    if lacking := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
        return f"{lacking[0]} is not installed"
    tried = subprocess.run([*UNSHARE, "ip", "link", "add", "node0", "type", "veth"], capture_output=True, text=True)
    return f"namespaces cannot be made: {tried.stderr.strip()}" if tried.returncode else ""


class Node:
    """A machine of its own: what is killed with it, is reached by its address only, and has its own /etc/hosts."""

    def __init__(self, name: str, hosts: Path) -> None:
        self.name = name
        self.holder = subprocess.Popen([*UNSHARE, "sh", "-c", "echo; exec sleep 300"], stdout=subprocess.PIPE)
        assert self.holder.stdout is not None
        self.holder.stdout.readline()
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text()
        self.pid = children.split()[0]
        # would go with its last process, and the cable with it, and the other node's address
        self.network = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        self.run("mount", "--bind", str(hosts), "/etc/hosts")
        self.run("hostname", name)

    def inside(self, *command: str) -> list[str]:
        here = ["env", "-C", os.getcwd()]  # who enters stands at the root
        return ["nsenter", "--target", self.pid, "--net", "--uts", "--mount", "--pid", *here, *command]

    def run(self, *command: str) -> None:
        subprocess.run(self.inside(*command), check=True)

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(self.inside(*command), env={**GLOO, **environment}, **streams)

    def kill(self) -> None:
        """All that runs there is gone at once."""
        self.holder.kill()
        self.holder.wait()

    def close(self) -> None:
        self.kill()
        os.close(self.network)


@contextmanager
def two(hosts: Path) -> Iterator[list[Node]]:
    """Two nodes and a cable between them. Nothing of it is left, whatever happens."""
    with ExitStack() as stack:
        nodes = []
        for name in ("node0", "node1"):
            nodes.append(Node(name, hosts))
            stack.callback(nodes[-1].close)
        ends = [["node0", "netns", nodes[0].pid], ["node1", "netns", nodes[1].pid]]
        subprocess.run(["ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1]], check=True)
        for number, node in enumerate(nodes, 1):
            node.run("ip", "address", "add", f"10.77.0.{number}/24", "dev", node.name)
            node.run("ip", "link", "set", node.name, "up")
            node.run("ip", "link", "set", "lo", "up")
        yield nodes


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
            "--rdzv-backend", "c10d", "--rdzv-id", "mine"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing() or "there are namespaces")
def test_two_machines_train_as_two_processes_do_and_go_on_when_one_was_lost(image_folder, tmp_path, monkeypatch):
    """First as machines whose names mean nothing to others, until one is lost; then by their names, to the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = ["--dataset", f"folder:{image_folder}", "--model", "deit_micro_patch8_64", "--dense-epochs", "1",
               "--epochs", "1", "--batch-size", "4"]  # fmt: skip  # 12 steps an epoch
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n127.0.1.1 node0 node1\n")
    both = tmp_path / "runs" / "mine"
    path = {"PYTHONPATH": str(ROOT)}
    with two(hosts) as nodes:
        started = [
            node.start(*TORCHRUN, "--rdzv-endpoint", "10.77.0.1:29500", "--rdzv-conf", f"is_host={int(first)}",
                       "--local-addr", address, *COMMAND[:2], "--", *COMMAND[2:], *options,
                       GLOO_SOCKET_IFNAME=node.name, **path)
            for node, address, first in zip(nodes, ("10.77.0.1", "10.77.0.2"), (True, False), strict=True)
        ]  # fmt: skip
        wait_for_step(both, "dense", 2)
        nodes[1].kill()
        said, _ = started[0].communicate(timeout=60)
        assert started[0].returncode != 0
        assert "error: another process of the training has ended. Repeat the command to go on" in said, said
        assert checkpoints.load(both / "checkpoints" / "dense.pt")["step"] >= 2
        started[1].communicate(timeout=10)
    hosts.write_text("127.0.0.1 localhost\n10.77.0.1 node0\n10.77.0.2 node1\n")
    with two(hosts) as nodes:
        started = [
            node.start(*TORCHRUN, "--rdzv-endpoint", "node0:29500", *COMMAND[:2], "--", *COMMAND[2:], *options, **path)
            for node in nodes
        ]
        for number, process in enumerate(started):
            said, _ = process.communicate(timeout=120)
            assert process.returncode == 0, said
            assert said.count("report: ") == (1 if number == 0 else 0)
    alone = [sys.executable, *COMMAND[:-1], "alone", *options, "--nproc", "2"]
    subprocess.run(alone, env={**GLOO, **path}, check=True, capture_output=True)
    for file in ("log.jsonl", "model/architecture.json", "model/weights.safetensors"):
        assert (both / file).read_bytes() == (tmp_path / "runs" / "alone" / file).read_bytes(), file
