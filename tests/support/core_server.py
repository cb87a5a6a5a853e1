"""A real ComfyUI server in a private folder, spoken to over HTTP; nothing is written into core's own tree."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("custom_nodes", "input", "output", "temp", "user/default")
MODEL_FOLDERS = ("diffusion_models", "text_encoders", "vae", "upscale_models")
PACK = "fusionframes"


class CoreServer:
    """Core on the CPU with this checkout as its only pack."""

    def __init__(self, core: str, base: Path, *arguments: str, **environment: str):
        self.core, self.base, self.arguments, self.environment = Path(core), base, arguments, environment
        for name in (*FOLDERS, *(f"models/{folder}" for folder in MODEL_FOLDERS)):
            (base / name).mkdir(parents=True, exist_ok=True)
        link = base / "custom_nodes" / PACK
        if not link.exists():
            link.symlink_to(ROOT)
        settings = {
            "Comfy.TutorialCompleted": True,
            "Comfy.InstalledVersion": "1.0.0",
            "Comfy.Minimap.Visible": False,
            "LiteGraph.Canvas.MinFontSizeForLOD": 0,
        }
        (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(settings))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "CoreServer":
        command = [
            sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--base-directory",
            str(self.base), "--database-url", "sqlite:///:memory:", "--disable-api-nodes", "--disable-auto-launch",
            *self.arguments,
        ]  # fmt: skip
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", **self.environment}
        self.log = (self.base / "server.log").open("wb")
        self.process = subprocess.Popen(command, cwd=self.core, env=env, stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 180
        while True:
            try:
                self.info = self.get("/object_info")
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise RuntimeError(f"core did not start:\n{self.log_text()[-3000:]}") from None
                time.sleep(0.3)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()

    def log_text(self) -> str:
        return (self.base / "server.log").read_text(errors="replace")

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, data: object):
        body = json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"core refused: {error.read().decode()[:2000]}") from None
        return json.loads(text) if text else None

    def queue(self, prompt: dict) -> str:
        answer = self.post("/prompt", {"prompt": prompt})
        if answer.get("node_errors"):
            raise RuntimeError(f"core refused nodes: {answer['node_errors']}")
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 300) -> dict:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise TimeoutError(f"no result after {timeout} s:\n{self.log_text()[-2000:]}")

    def run(self, prompt: dict, timeout: float = 300) -> dict:
        """Run an API workflow to its end and return its history."""
        result = self.wait(self.queue(prompt), timeout)
        if result["status"]["status_str"] != "success":
            raise RuntimeError(self.failure(result) or str(result["status"]))
        return result

    @staticmethod
    def failure(result: dict) -> str | None:
        """Text of the exception a run ended with."""
        for kind, data in result["status"]["messages"]:
            if kind == "execution_error":
                return data["exception_message"]
        return None

    def files(self, result: dict) -> list[Path]:
        """Files a run has saved, in the order of the node ids."""
        found = []
        for node in sorted(result["outputs"], key=int):
            for entries in result["outputs"][node].values():
                found += [
                    self.base / entry["type"] / entry["subfolder"] / entry["filename"]
                    for entry in entries
                    if isinstance(entry, dict) and "filename" in entry and entry["type"] == "output"
                ]
        return found

    def memory_bytes(self) -> int:
        """Resident memory of the server (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024
