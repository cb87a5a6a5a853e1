"""The real front end of ComfyUI without its server: every request of the page is answered from recorded answers."""

import importlib.util
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route, WebSocketRoute

# Nothing listens there: the page's requests never leave the browser. Random ids need a secure origin, localhost is.
ORIGIN = "http://localhost"
SIZE = {"width": 1920, "height": 1080}
READY_SECONDS = 90
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    # Off by default: hold every file against the front end's own schema and complain.
    "Comfy.Validation.Workflows": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.RightSidePanel.IsOpen": False,
    # Small pictures keep their texts.
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}
ANSWERS = {
    "users": {"storage": "server", "migrated": True},
    "settings": SETTINGS,
    "extensions": [],
    "features": {},
    "system_stats": {"system": {"comfyui_version": "0", "argv": ["--disable-api-nodes"]}, "devices": []},
    "userdata": [],
    "i18n": {},
    "global_subgraphs": {},
    "node_replacements": {},
    "experiment/models": [],
    "jobs": {"jobs": [], "pagination": {"offset": 0, "limit": 0, "total": 0, "has_more": False}},
}
STATUS = {"type": "status", "data": {"sid": "stand-in", "status": {"exec_info": {"queue_remaining": 0}}}}

# A workflow of its own is the last thing that the app opens by itself.
READY = """ids => window.app?.extensionManager?.workflow?.activeWorkflow && !app.extensionManager.spinner
    && ids.every(id => LiteGraph.registered_node_types[id])"""
OPEN = """async ([workflow, name]) => {
    await app.loadGraphData(workflow, true, false, name);
    if (workflow.nodes.length) await app.extensionManager.command.execute("Comfy.Canvas.FitView");
}"""
# As of front end 1.49 and of 1.58.
TOASTS = ".p-toast-message, [data-testid=toast]"
BOXES = f"[role=dialog], [role=alertdialog], .p-dialog, [data-testid=error-overlay], {TOASTS}"
REPORT = """async ([boxes, toasts]) => {
    const problems = [];
    const walk = graph => graph.nodes.forEach(node => {
        const label = `node ${node.id} (${node.type})`;
        const known = LiteGraph.registered_node_types[node.type] || node.isVirtualNode || node.subgraph;
        if (!known) problems.push(`${label} is not registered`);
        if (node.has_errors) problems.push(`${label} is marked as faulty`);
        for (const widget of node.widgets ?? []) {
            const {values} = widget.options ?? {};
            const options = typeof values === "function" ? values(widget, node) : values;
            if (Array.isArray(options) && !options.includes(widget.value))
                problems.push(`${label}: ${widget.name} has no option ${JSON.stringify(widget.value)}`);
        }
        if (node.subgraph) walk(node.subgraph);
    });
    walk(app.rootGraph ?? app.graph);
    for (const box of document.querySelectorAll(boxes))
        if (box.checkVisibility()) {
            problems.push(`shows: ${box.innerText.trim().replace(/\\s+/g, " ")}`);
            // A toast would stay for the next workflow.
            if (box.matches(toasts)) box.style.display = "none";
        }
    return {problems, prompt: (await app.graphToPrompt()).output};
}"""


def static_folder() -> Path | None:
    """Return the files of the installed front end, None if there is none."""
    spec = importlib.util.find_spec("comfyui_frontend_package")
    return None if spec is None else Path(spec.submodule_search_locations[0]) / "static"


def chromium() -> str | None:
    """Return the browser: the one CHROMIUM names, else the first on the path."""
    named = os.environ.get("CHROMIUM")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome"]
    return next(filter(None, map(shutil.which, names)), None)


def all_nodes(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """List the nodes of a workflow file with those inside its subgraphs, without the boxes that stand for these."""
    subgraphs = (workflow.get("definitions") or {}).get("subgraphs", [])
    boxes = {subgraph["id"] for subgraph in subgraphs}
    graphs = [workflow, *subgraphs]
    return [node for graph in graphs for node in graph["nodes"] if node["type"] not in boxes]


def input_specs(definition: dict[str, Any]) -> dict[str, list[Any]]:
    """Map the inputs of a recorded node definition, required ones first, to type and options."""
    kinds = definition["input"]
    return {**kinds.get("required", {}), **kinds.get("optional", {})}


@dataclass(frozen=True)
class Opened:
    """What the front end made of a workflow."""

    problems: list[str]
    prompt: dict[str, Any]
    picture: bytes = field(repr=False)


@dataclass(repr=False)
class FrontEnd:
    """A page with the front end; every workflow is opened once."""

    page: "Page"
    static: Path
    definitions: dict[str, Any]
    page_errors: list[str] = field(default_factory=list)
    opened: dict[str, Opened] = field(default_factory=dict)

    def start(self) -> None:
        """Load the app and wait until it knows our nodes."""
        self.page.on("pageerror", lambda error: self.page_errors.append(f"page error: {error}"))
        self.page.route("**/*", self.answer)
        self.page.route_web_socket("**/ws*", self.greet)
        self.page.goto(f"{ORIGIN}/")
        ids = [name for name in self.definitions if name.startswith("FusionFrames")]
        self.page.wait_for_function(READY, arg=ids, timeout=READY_SECONDS * 1000)

    def answer(self, route: "Route") -> None:
        """Answer a request of the page; none goes out."""
        url = urlsplit(route.request.url)
        api, path = url.path.removeprefix("/api/"), self.static / (url.path[1:] or "index.html")
        if f"{url.scheme}://{url.netloc}" != ORIGIN:
            route.abort()
        elif url.path == "/api/object_info":
            route.fulfill(json=self.definitions)
        elif api != url.path and api in ANSWERS:
            route.fulfill(json=ANSWERS[api])
        elif path.is_file():
            route.fulfill(path=path)
        else:
            route.fulfill(status=404)

    def greet(self, socket: "WebSocketRoute") -> None:
        """Say what the server says first; what the page sends is left unread."""
        socket.on_message(lambda _: None)
        socket.send(json.dumps(STATUS))

    def open(self, name: str, workflow: dict[str, Any]) -> Opened:
        """Open a workflow, fit it into the page, and say what the front end made of it."""
        if name not in self.opened:
            self.page.evaluate(OPEN, [workflow, name])
            # Fitting is animated for a quarter of a second.
            self.page.wait_for_timeout(600)
            report = self.page.evaluate(REPORT, [BOXES, TOASTS])
            problems = report["problems"] + self.page_errors
            self.page_errors.clear()
            self.opened[name] = Opened(problems, report["prompt"], self.page.screenshot())
        return self.opened[name]
