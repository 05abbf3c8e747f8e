"""The page in a real Chromium: three widths, light and dark, with and without JavaScript.

axe-core looks for what people with assistive technology could not use; npm brings it when the test
runs, and it is not kept here. With CIMA_SCREENSHOTS=DIRECTORY the pictures are kept.
"""

import hashlib
import json
import os
import re
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from cima_runc.fleet import setup
from cima_runc.fleet.app import application
from tests.support import chromium as browser
from tests.support.chromium import Chromium
from tests.support.fleet_page import Planted, plant
from tests.support.served_fleet import ServedFleet, eventually, served_fleet

WIDTHS = (360, 800, 1400)
AXE = "axe-core@4.14.1"
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"

pytestmark = pytest.mark.skipif(
    browser.PROGRAM is None, reason="Debian's package chromium is not installed: ./dev setup"
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    root = tmp_path_factory.mktemp("fleet")
    with served_fleet(root, f"sqlite:///{root / 'fleet.db'}") as found:
        yield found


@pytest.fixture(scope="module")
def planted(fleet: ServedFleet) -> Planted:
    return plant(fleet)


@pytest.fixture(scope="module")
def address(fleet: ServedFleet) -> Iterator[str]:
    """The same service over TLS, where a browser can reach it."""
    certificate, key = setup.certificate(fleet.service.settings)
    config = uvicorn.Config(
        application(fleet.service),
        port=0,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        lifespan="off",
        log_config=None,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.05)
    yield f"https://localhost:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def signed_in(tab: Chromium, fleet: ServedFleet, address: str, planted: Planted) -> Chromium:
    """As a person does it, by the form."""
    tab.go(f"{address}/hosts")
    token = json.dumps(fleet.admin)
    tab.run(f"document.querySelector('[name=token]').value = {token}")
    tab.events.clear()
    tab.run("document.querySelector('form button').click()")
    until = time.monotonic() + 60
    while tab.run("document.querySelector('h1')?.textContent") != "Hosts":
        assert time.monotonic() < until
        time.sleep(0.1)
    return tab


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's script, from npm; what comes is what was tried."""
    root = tmp_path_factory.mktemp("axe")
    try:
        command = ["npm", "pack", AXE, "--silent"]
        made = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=True, timeout=120
        )
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm does not bring {AXE}: {error}")
    with tarfile.open(root / made.stdout.split()[-1]) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        script = member.read()
    assert hashlib.sha256(script).hexdigest() == AXE_SHA256
    return script.decode("utf-8")


def views(planted: Planted) -> dict[str, str]:
    return {
        "overview": "/",
        "hosts": "/hosts",
        "host": f"/hosts/{planted.ak}",
        "containers": "/containers",
        "container": f"/containers/{planted.uid}",
        "image": f"/images/{planted.image}",
        "search": f"/search?q=sha256:{planted.digest}",
        "policies": "/policies",
        "enrolments": "/enrolments",
        "events": "/events",
        "webhooks": "/webhooks",
        "audit": "/audit",
        "error": "/containers/ffffffffffffffff",
        "sign-in": "/sign-in",
    }


def complaints(tab: Chromium) -> list[Any]:
    """What the browser itself found wrong: refused content, errors."""
    kinds = {"Log.entryAdded", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"}
    return [
        one["params"]
        for one in tab.events
        if one["method"] in kinds
        and one["params"].get("entry", {}).get("level") not in {"verbose", "info"}
        and "404" not in json.dumps(one["params"])
    ]


def test_each_view_at_three_widths_light_and_dark(
    signed_in: Chromium, address: str, planted: Planted, axe: str, tmp_path: Path
) -> None:
    kept = Path(os.environ.get("CIMA_SCREENSHOTS", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    wrong: dict[str, Any] = {}
    for name, path in views(planted).items():
        for dark in (False, True):
            for width in WIDTHS:
                signed_in.look(width=width, dark=dark)
                signed_in.go(address + path)
                where = f"{name}-{width}-{'dark' if dark else 'light'}"
                signed_in.screenshot(kept / f"{where}.png")
                if found := complaints(signed_in):
                    wrong[f"{where}: browser"] = found
                # The page itself never scrolls sideways; wide tables do, in their frames.
                if signed_in.run("document.documentElement.scrollWidth > window.innerWidth"):
                    wrong[f"{where}: width"] = signed_in.run("document.documentElement.scrollWidth")
                signed_in.run(axe + ";undefined")
                violations = signed_in.run(
                    "axe.run().then(r => r.violations.map(v =>"
                    " ({id: v.id, nodes: v.nodes.slice(0, 3).map(n => n.html.slice(0, 200))})))"
                )
                if violations:
                    wrong[f"{where}: axe"] = violations
    assert not wrong, json.dumps(wrong, indent=1)


def test_nothing_needs_javascript(signed_in: Chromium, address: str, planted: Planted) -> None:
    def seen(path: str, *, script: bool) -> str:
        signed_in.call("Emulation.setScriptExecutionDisabled", value=not script)
        signed_in.go(address + path)
        # The browser's own tree of what is shown, which needs no script.
        tree = signed_in.call("Accessibility.getFullAXTree")["nodes"]
        text = " ".join(str(node.get("name", {}).get("value", "")) for node in tree)
        return re.sub(r"\d\d:\d\d:\d\d", "TIME", text)

    def at_rest(path: str) -> tuple[str, str] | None:
        """What it shows with scripts and without, while nothing else changes it.

        The service goes on meanwhile: it tries to reach the webhooks.
        """
        before, without = seen(path, script=True), seen(path, script=False)
        return (before, without) if seen(path, script=True) == before else None

    for name, path in views(planted).items():
        with_script, without = eventually(lambda path=path: at_rest(path), seconds=60)
        assert len(without) > 40 and without == with_script, name


def test_by_keyboard_alone(signed_in: Chromium, address: str) -> None:
    """Every link and field is reached with Tab, in order, and one sees where one is."""
    signed_in.look(width=800, dark=False)
    signed_in.go(f"{address}/containers")
    wanted = signed_in.run(
        "[...document.querySelectorAll('a, button, input:not([type=hidden]), select, [tabindex]')]"
        ".length"
    )
    seen = []
    for _ in range(wanted):
        key = {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
        signed_in.call("Input.dispatchKeyEvent", type="keyDown", **key)
        signed_in.call("Input.dispatchKeyEvent", type="keyUp", **key)
        seen.append(
            signed_in.run(
                "[[...document.querySelectorAll('*')].indexOf(document.activeElement),"
                " getComputedStyle(document.activeElement).outlineStyle]"
            )
        )
    places = [place for place, _ in seen]
    assert places == sorted(places) and len(set(places)) == wanted
    assert {style for _, style in seen} == {"solid"}
