"""The web page in a real Chromium: what is clicked, shown and drawn, under its strict policy."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from httpd import Service, serving, until

from driffusion_trt import Pipeline
from driffusion_trt.server.edge import Keys

NEEDED = os.environ.get("DRIFFUSION_NEEDS_BROWSER") == "1"  # then these tests fail where they cannot be made
if NEEDED:
    import playwright.sync_api as sync_api
else:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `test`")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None and not NEEDED, reason="there is no Chromium on this machine"),
    pytest.mark.filterwarnings("ignore::driffusion_trt.pipeline.PromptWarning"),
]
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, service: Service) -> Iterator[Any]:
    """The page, once it knows the model. Nothing may be said on the console, nor fetched from elsewhere."""
    found = browser.new_page()
    said: list[str] = []
    fetched: list[str] = []
    found.on("console", lambda message: said.append(message.text))
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("request", lambda request: fetched.append(request.url))
    found.set_default_timeout(WAIT_MS)
    found.goto(service.url)
    says(found, "#about", "tiny")
    yield found
    found.close()
    assert [text for text in said if "status of 4" not in text] == []  # refusals are told of on the page
    assert [url for url in fetched if not url.startswith((service.url, "data:"))] == []


def says(page: Any, selector: str, words: str) -> None:
    """Wait until it does; without evaluating code, which the page's policy forbids."""
    sync_api.expect(page.locator(selector)).to_contain_text(words, timeout=WAIT_MS)


def test_both_pictures_are_made_side_by_side(page: Any) -> None:
    page.fill("#prompt", "a red star")
    page.fill("#seed", "7")
    page.fill("#steps", "12")
    page.select_option("#mode", "aggressive")
    assert page.is_disabled("#quality"), "it is of mode auto"
    page.click("#make")
    page.wait_for_selector("#verdict:not(:empty)")
    assert re.search(r"7 rounds in \d+ ms, for 12 in \d+ ms", page.inner_text("#verdict"))
    for panel, state in (
        ("#parallel", "mode aggressive, 7 rounds for 12 steps, seed 7"),
        ("#sequential", "mode sequential, 12 rounds for 12 steps, seed 7"),
    ):
        assert page.inner_text(f"{panel} .state") == state
        shown = "e => e.complete && e.naturalWidth === 64 && e.classList.contains('whole')"
        assert page.eval_on_selector(f"{panel} img", shown)
        assert "made in" in page.inner_text(f"{panel} .times")
    # A box for each prediction, on the lanes that made them.
    assert page.locator("#parallel svg rect:not(.ground)").count() == 12
    assert page.locator("#parallel svg > text").all_text_contents()[:2] == ["lane 0", "lane 1"]
    assert page.locator("#sequential svg rect:not(.ground)").count() == 12
    assert page.is_enabled("#make") and page.is_disabled("#stop")


@pytest.mark.parametrize(
    ("mode", "chosen", "said"),
    [
        (
            "auto",
            {"mode": "sequential", "split_guidance": True},
            r"^12 rounds with split guidance in \d+ ms, for 12 in",
        ),
        (
            "auto",
            {"mode": "sequential"},
            r"^Mode auto found no plan that is faster .* so both are sequential\.$",
        ),
        ("sequential", {}, r"^Both are sequential\.$"),
    ],
    ids=["split", "none", "by hand"],
)
def test_a_sequential_picture_is_told_by_why_it_is(
    page: Any, service: Service, monkeypatch: pytest.MonkeyPatch, mode: str, chosen: dict[str, Any], said: str
) -> None:
    """Guidance that is split over two lanes is a plan too, and the one that auto often takes on two."""
    submit = service.engine.submit

    async def as_chosen(prompt: str, **settings: Any) -> Any:
        if settings.get("mode", "auto") == "auto":
            settings.pop("quality", None)
            settings |= chosen
        return await submit(prompt, **settings)

    monkeypatch.setattr(service.engine, "submit", as_chosen)
    page.fill("#steps", "12")
    page.select_option("#mode", mode)
    page.click("#make")
    page.wait_for_selector("#verdict:not(:empty)")
    assert re.search(said, page.inner_text("#verdict"))
    words = "mode sequential with split guidance" if chosen.get("split_guidance") else "mode sequential, 12"
    assert page.inner_text("#parallel .state").startswith(words)
    assert page.inner_text("#sequential .state").startswith("mode sequential, 12 rounds")


def test_previews_show_before_the_picture_is_there(page: Any, service: Service) -> None:
    page.fill("#steps", "8")
    page.uncheck("#both")
    service.engine.gate.clear()
    page.click("#make")
    says(page, "#parallel .state", "waiting")
    assert page.is_enabled("#stop") and page.is_disabled("#make")
    page.evaluate(
        """() => {
            window.seen = [];
            const image = document.querySelector('#parallel img');
            const look = new MutationObserver(() => window.seen.push(image.className));
            look.observe(image, {attributeFilter: ['src']});
            window.shares = [];
            const bar = document.querySelector('#parallel progress');
            const moved = new MutationObserver(() => window.shares.push(bar.value));
            moved.observe(bar, {attributeFilter: ["value"]});
        }"""
    )
    service.engine.gate.set()
    page.wait_for_selector("#parallel img.whole")
    shares = page.evaluate("window.shares")
    assert shares == sorted(shares) and 0 < shares[0] <= shares[-1] <= 1, "how far it is"
    assert page.locator("#parallel progress").get_attribute("hidden") is not None
    assert page.evaluate("window.seen.length") >= 2, "previews, and then the picture"
    assert page.inner_text("#sequential .state") == "not asked for"


def test_stop_gives_the_request_up(page: Any, service: Service) -> None:
    service.engine.gate.clear()
    page.click("#make")
    says(page, "#parallel .state", "waiting")
    until(lambda: service.engine.under_way)
    assert page.locator("#verdict").is_hidden()
    (ticket,) = service.engine.under_way
    page.click("#stop")
    says(page, "#message", "stopped")
    assert ticket.cancelled.wait(60)
    assert page.is_enabled("#make")


def test_what_goes_wrong_is_said(page: Any) -> None:
    page.fill("#steps", "1000")
    page.click("#make")
    says(page, "#message", "from 1 to 200")
    assert page.locator("[aria-invalid]").evaluate_all("found => found.map(e => e.id)") == ["steps"]
    page.fill("#steps", "")
    page.fill("#prompt", "<img src=x onerror=alert(1)>")
    page.fill("#size", "16x17")
    page.click("#make")
    says(page, "#message", "multiple of 16")


def test_texts_are_never_markup(page: Any, service: Service) -> None:
    """What a model says of an unknown word has the word in it."""
    page.fill("#prompt", "<b>bold</b>")
    page.fill("#steps", "2")
    page.uncheck("#both")
    page.click("#make")
    page.wait_for_selector("#parallel img.whole")
    assert "does not know" in page.inner_text("#parallel .times")
    assert page.locator("#parallel .times b").count() == 0


def test_all_that_is_to_say_of_a_prompt_is_said(page: Any) -> None:
    page.fill("#prompt", "spotted " + 30 * "a red fox and a blue star ")
    page.fill("#steps", "2")
    page.uncheck("#both")
    page.click("#make")
    page.wait_for_selector("#parallel img.whole")
    words = page.inner_text("#parallel .times")
    assert "does not know 'spotted'" in words and "too long" in words


def test_a_deadline_leaves_the_quality_to_it(page: Any, service: Service) -> None:
    assert page.is_enabled("#quality")
    page.fill("#deadline_ms", "50000")
    assert page.is_disabled("#quality")
    page.select_option("#mode", "aggressive")
    page.select_option("#mode", "auto")
    assert page.is_disabled("#quality")
    page.fill("#deadline_ms", "")
    assert page.is_enabled("#quality")


def test_events_are_read_however_they_are_cut(page: Any) -> None:
    """Of one byte, of all of them, and between the two line ends that end an event."""
    found = page.evaluate(
        r"""async () => {
            const {events} = await import("/stream.js");
            const text = ": waiting\n\nevent: a\ndata: {\"type\": \"a\", \"text\": \"ü\"}\n\n"
                + "event: b\ndata: {\"type\": \"b\"}\n\n";
            const bytes = new TextEncoder().encode(text), kept = window.fetch, found = [];
            for (const size of [1, 2, 3, 7, bytes.length]) {
                window.fetch = async () => new Response(new ReadableStream({start(to) {
                    for (let at = 0; at < bytes.length; at += size) to.enqueue(bytes.slice(at, at + size));
                    to.close();
                }}));
                const types = [];
                for await (const event of events({}, "", null)) types.push(event.type + (event.text ?? ""));
                found.push(types.join());
            }
            window.fetch = kept;
            return found;
        }"""
    )
    assert found == 5 * ["aü,b"]


@pytest.mark.parametrize("width", [360, 1100])
def test_it_fits_the_window(page: Any, width: int, tmp_path: Path) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for label in ("Prompt", "Seed", "Mode", "Quality of auto"):
        assert page.get_by_label(label).first.is_visible()


def test_a_key_is_asked_for_and_used(browser: Any, pipe: Pipeline) -> None:
    with serving(pipe, keys=Keys(["secret"])) as service:
        page = browser.new_page()
        page.goto(service.url)
        says(page, "#about", "no API key")
        page.fill("#key", "secret")
        page.fill("#steps", "2")
        page.uncheck("#both")
        page.click("#make")
        page.wait_for_selector("#parallel img.whole", timeout=WAIT_MS)
        page.close()
