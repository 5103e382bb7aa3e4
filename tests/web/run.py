#!/usr/bin/env python3
"""Tests the web page in headless Chromium.

  tests/web/run.py                    against the scripted mock server
  tests/web/run.py --url http://...   against a running `reft serve` (only what any model can answer)
  --shots DIR                         also writes screenshots there
"""
import argparse
import contextlib
import json
import pathlib
import re
import sys
import traceback
import urllib.request

from playwright.sync_api import expect, sync_playwright

import mock_server

TESTS = []


def test(function=None, *, mock_only=True, **context):
    def add(f):
        TESTS.append((f, mock_only, context))
        return f
    return add(function) if function else add


class Page:
    """One fresh browser context with the page opened."""

    def __init__(self, browser, url, shots, real=False, **context):
        self.url, self.shots = url, shots
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 820}, "permissions": ["clipboard-read", "clipboard-write"], **context})
        # A real model may ramble on: its answers are kept short.
        self.context.add_init_script("localStorage.getItem('reft.defaults') ?? localStorage.setItem('reft.defaults', '{\"max_tokens\": 48}')" if real else "")
        self.page = self.context.new_page()
        self.problems = []
        self.page.on("pageerror", lambda e: self.problems.append(f"exception: {e}"))
        self.page.on("console", lambda m: self.problems.append(f"console: {m.text}") if m.type == "error" and "Failed to load resource" not in m.text else None)
        self.outside = []
        self.page.on("request", lambda r: self.outside.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
        self.open()

    def open(self):
        self.page.goto(f"{self.url}/ui.html")
        self.page.wait_for_selector("html[data-ready]")

    def send(self, text, wait=True):
        count = self.page.locator(".message.assistant").count()
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        expect(self.page.locator(".message.assistant")).to_have_count(count + 1)
        if wait:
            self.done()

    def done(self):
        expect(self.page.locator("#send")).to_be_visible(timeout=60000)

    def answer(self):
        return self.page.locator(".message.assistant .answer").last

    def shot(self, name):
        if self.shots:
            self.page.screenshot(path=str(self.shots / f"{name}.png"))

    def requests(self):
        with urllib.request.urlopen(f"{self.url}/mock/requests") as response:
            return json.load(response)


def has_class(locator, name):
    expect(locator).to_have_class(re.compile(rf"(^|\s){name}(\s|$)"))


@test(mock_only=False)
def sends_and_streams(p):
    expect(p.page.locator("#status-dot")).to_have_class("dot good")
    assert p.page.locator("#model").input_value()
    p.shot("empty")
    p.send("Hello there")
    assert len(p.answer().inner_text()) > 0
    expect(p.page.locator(".stats").last).to_contain_text(re.compile("tokens"))
    expect(p.page.locator(".stats").last).to_contain_text("first token")


@test
def shows_text_while_it_streams(p):
    p.send("slow please", wait=False)
    expect(p.answer()).to_contain_text("word word")
    first = len(p.answer().inner_text())
    p.page.wait_for_timeout(400)
    assert len(p.answer().inner_text()) > first
    expect(p.page.locator("#stop")).to_be_visible()
    p.shot("streaming")


@test
def stop_keeps_the_text(p):
    p.send("slow please", wait=False)
    expect(p.answer()).to_contain_text("word word")
    p.page.keyboard.press("Escape")
    p.done()
    text = p.answer().inner_text()
    p.page.wait_for_timeout(300)
    assert p.answer().inner_text() == text and "word" in text
    expect(p.page.locator(".stats").last).to_contain_text("stopped")
    assert any(r.get("aborted") for r in p.requests()), "the server must notice the abort"
    p.page.click("[data-action=continue]")
    p.done()
    expect(p.answer()).to_contain_text("and goes on.")
    last = [r for r in p.requests() if "messages" in r][-1]
    assert last["continue_final_message"] is True and last["messages"][-1]["role"] == "assistant"


@test(mock_only=False)
def regenerates_into_versions(p):
    p.send("Name a colour")
    p.page.click("[data-action=regenerate]")
    p.done()
    expect(p.page.locator(".pager")).to_contain_text("2 / 2")
    p.page.click("[data-action=previous]")
    expect(p.page.locator(".pager")).to_contain_text("1 / 2")


@test
def edits_and_resends(p):
    p.send("first")
    p.send("second")
    p.page.locator(".message.user").first.hover()
    p.page.locator("[data-action=edit]").first.click()
    p.page.fill(".editor textarea", "changed")
    p.shot("edit")
    p.page.press(".editor textarea", "Enter")
    expect(p.page.locator(".message.user")).to_have_count(1)
    p.done()
    expect(p.answer()).to_have_text("You said: changed")
    p.page.press("#prompt", "ArrowUp")
    expect(p.page.locator(".editor textarea")).to_have_value("changed")
    p.page.keyboard.press("Escape")
    expect(p.page.locator(".bubble")).to_have_text("changed")


@test
def renders_markdown_code_and_maths(p):
    p.send("markdown please")
    answer = p.answer()
    expect(answer.locator("h2")).to_have_text("Merging two sorted lists")
    expect(answer.locator("pre code .hljs-keyword").first).to_have_text("def")
    expect(answer.locator(".katex-display")).to_have_count(1)
    expect(answer.locator(".katex")).to_have_count(3)
    expect(answer).to_contain_text("It costs $5 or $6.")
    expect(answer.locator("td")).to_have_count(4)
    expect(answer.locator("a")).to_have_attribute("rel", "noopener noreferrer nofollow")
    fonts = p.page.evaluate("document.fonts.ready.then(() => [...document.fonts].filter((f) => f.status === 'loaded').map((f) => f.family))")
    assert any("KaTeX" in f for f in fonts), fonts
    p.page.locator(".copy-code").click()
    assert p.page.evaluate("navigator.clipboard.readText()").startswith("def merge")
    expect(p.page.locator(".copy-code")).to_have_text("Copied")
    p.page.locator("#scroller").evaluate("e => e.scrollTo(0, 0)")
    p.shot("markdown")


@test
def hostile_text_stays_text(p):
    p.send("hostile please <img src=x onerror=window.hacked=9>")
    p.page.wait_for_timeout(300)
    assert p.page.evaluate("window.hacked") is None
    for selector in ("script", "img", "iframe", "svg[onload]", "style", "[onerror]", "[onclick]", 'a[href^="javascript"]'):
        assert p.answer().locator(selector).count() == 0, selector
    assert p.page.locator(".bubble img").count() == 0
    assert not p.outside, p.outside


@test
def folds_reasoning(p):
    for prompt in ("reason about it", "think tag please"):
        p.send(prompt)
        thought = p.page.locator(".thought").last
        expect(thought.locator("summary")).to_contain_text("Thought")
        assert not thought.evaluate("e => e.open")
    expect(p.answer()).to_have_text("Shown answer")
    p.page.locator(".thought summary").first.click()
    expect(p.page.locator(".thought .prose").first).to_contain_text("Two and two make four.")
    p.shot("reasoning")
    p.send("next")
    sent = [m["content"] for m in p.requests()[-1]["messages"] if m["role"] == "assistant"]
    assert sent == ["The answer is 4.", "Shown answer"], sent


@test(mock_only=False)
def history_survives_reload(p):
    p.send("Remember me")
    text = p.answer().inner_text()
    p.open()
    expect(p.page.locator(".bubble")).to_have_text("Remember me")
    assert p.answer().inner_text() == text
    expect(p.page.locator(".item.current .open")).to_have_text("Remember me")


@test
def suggestions_start_a_chat_that_is_kept(p):
    p.page.locator(".suggestions button").first.click()
    p.done()
    p.open()
    expect(p.page.locator(".bubble")).to_contain_text("hash map")
    p.page.keyboard.press("Control+Shift+O")
    p.open()
    expect(p.page.locator(".bubble")).to_have_count(0)
    expect(p.page.locator(".item")).to_have_count(1)


@test
def renames_searches_exports_and_deletes(p):
    p.send("Apples are red")
    p.page.keyboard.press("Control+Shift+O")
    expect(p.page.locator(".welcome")).to_be_visible()
    p.send("Bananas are yellow")
    expect(p.page.locator(".item")).to_have_count(2)
    p.page.fill("#search", "apples")
    expect(p.page.locator(".item")).to_have_count(1)
    p.page.fill("#search", "")
    item = p.page.locator(".item", has_text="Apples")
    item.hover()
    item.locator(".menu-button").click()
    p.shot("menu")
    with p.page.expect_download() as download:
        p.page.get_by_role("menuitem", name="Export as Markdown").click()
    assert "Apples are red" in pathlib.Path(download.value.path()).read_text()
    assert download.value.suggested_filename == "apples-are-red.md"
    item.locator(".menu-button").click()
    p.page.get_by_role("menuitem", name="Rename").click()
    p.page.fill(".rename", "Fruit")
    p.page.press(".rename", "Enter")
    expect(p.page.locator(".item", has_text="Fruit")).to_have_count(1)
    p.open()
    item = p.page.locator(".item", has_text="Fruit")
    item.hover()
    item.locator(".menu-button").click()
    p.page.get_by_role("menuitem", name="Delete").click()
    p.page.click("#confirm-yes")
    expect(p.page.locator(".item")).to_have_count(1)
    p.open()
    expect(p.page.locator(".item")).to_have_count(1)


@test
def settings_reach_the_server(p):
    p.page.click("#open-settings")
    p.page.fill("#s-system", "Be brief.")
    for label, value in (("Temperature", "0.3"), ("Top p", "0.9"), ("Top k", "40"), ("Min p", "0.05"), ("Max tokens", "64"), ("Seed", "7")):
        p.page.get_by_label(label, exact=True).fill(value)
    p.page.fill("#s-stop", "END\n###")
    p.page.get_by_label("Off").check()
    p.shot("settings")
    p.page.get_by_role("button", name="Done").click()
    p.send("hi")
    body = p.requests()[-1]
    for name, value in (("temperature", 0.3), ("top_p", 0.9), ("top_k", 40), ("min_p", 0.05), ("max_tokens", 64), ("seed", 7), ("stop", ["END", "###"])):
        assert body[name] == value, (name, body)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    p.open()
    p.page.click("#open-settings")
    expect(p.page.get_by_label("Temperature", exact=True)).to_have_value("0.3")
    p.page.click("#reset-settings")
    p.page.keyboard.press("Escape")
    p.page.click("#new-chat")
    p.send("hi")
    assert "temperature" not in p.requests()[-1]


@test
def shows_errors(p):
    p.send("fail please")
    expect(p.page.locator(".failure").last).to_contain_text("max_tokens is too large")
    p.send("break off please")
    expect(p.answer()).to_contain_text("half an answer")
    expect(p.page.locator(".failure").last).to_contain_text("broke off")
    p.send("late error please")
    expect(p.page.locator(".failure").last).to_contain_text("the engine failed")
    p.shot("errors")
    p.send("cut please")
    expect(p.page.locator(".stats").last).to_contain_text("cut off at the token limit")
    p.context.set_offline(True)
    p.send("anyone?")
    expect(p.page.locator(".failure").last).to_contain_text("cannot be reached")
    expect(p.page.locator("#banner")).to_contain_text("cannot be reached")
    p.shot("offline")
    p.context.set_offline(False)
    expect(p.page.locator("#banner")).to_be_hidden(timeout=10000)


@test
def asks_for_the_key(p):
    mock_server.Handler.key = "secret"
    try:
        p.open()
        expect(p.page.locator("#banner")).to_contain_text("API key")
        p.page.locator("#banner button").click()
        p.page.fill("#s-key", "secret")
        p.page.get_by_role("button", name="Done").click()
        expect(p.page.locator("#banner")).to_be_hidden(timeout=10000)
        p.send("hi")
        expect(p.answer()).to_have_text("You said: hi")
    finally:
        mock_server.Handler.key = ""


@test(mock_only=False)
def switches_theme(p):
    theme = lambda: p.page.evaluate("document.documentElement.dataset.theme")
    assert theme() == "light"
    p.page.emulate_media(color_scheme="dark")
    p.page.wait_for_timeout(100)
    assert theme() == "dark", "follows the system"
    p.page.emulate_media(color_scheme="light")
    p.page.click("#theme")
    p.page.click("#theme")
    p.page.click("#theme")
    assert theme() == "light"
    while theme() != "dark":
        p.page.click("#theme")
    p.open()
    assert theme() == "dark", "remembered"


@test(color_scheme="dark")
def looks_right_in_the_dark(p):
    p.send("markdown please")
    p.page.locator("#scroller").evaluate("e => e.scrollTo(0, 0)")
    p.shot("dark")
    p.page.click("#tab-metrics")
    p.page.wait_for_timeout(2500)
    p.shot("dark_metrics")


@test(viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True)
def works_on_a_phone(p):
    overflow = "document.documentElement.scrollWidth > innerWidth"
    p.shot("phone_empty")
    assert not p.page.evaluate(overflow)
    expect(p.page.locator("#sidebar")).not_to_be_visible()
    p.page.fill("#prompt", "markdown please")
    p.page.click("#send")
    p.done()
    assert not p.page.evaluate(overflow)
    p.shot("phone")
    p.page.click("#open-sidebar")
    expect(p.page.locator("#sidebar")).to_be_visible()
    p.page.wait_for_timeout(300)
    p.shot("phone_sidebar")
    p.page.click("#new-chat")
    expect(p.page.locator("#sidebar")).not_to_be_visible()
    p.page.click("#open-settings")
    p.shot("phone_settings")
    p.page.keyboard.press("Escape")
    p.page.click("#tab-metrics")
    p.page.wait_for_timeout(1500)
    assert not p.page.evaluate(overflow)
    p.shot("phone_metrics")


@test(mock_only=False)
def plots_metrics(p):
    p.page.click("#tab-metrics")
    expect(p.page.locator(".tiles div")).to_have_count(12, timeout=10000)
    expect(p.page.locator("canvas")).to_have_count(6)
    expect(p.page.locator("#metrics-state")).to_contain_text("Updated")
    p.page.wait_for_timeout(4500)
    p.shot("metrics")
    assert re.search(r"\d", p.page.locator(".tiles dd").first.inner_text())
    p.page.keyboard.press("ArrowLeft") if p.page.evaluate("document.activeElement.id") == "tab-metrics" else p.page.click("#tab-chat")
    expect(p.page.locator("#view-chat")).to_be_visible()


@test
def keyboard_and_names(p):
    p.page.keyboard.press("Tab")
    unnamed = p.page.evaluate("[...document.querySelectorAll('button, input, textarea, select')].filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length || e.title)).map((e) => e.outerHTML)")
    assert not unnamed, unnamed
    p.page.keyboard.press("Control+K")
    expect(p.page.locator("#search")).to_be_focused()
    p.page.evaluate("document.activeElement.blur()")
    p.page.keyboard.press("/")
    expect(p.page.locator("#prompt")).to_be_focused()
    p.page.keyboard.type("two")
    p.page.keyboard.press("Shift+Enter")
    p.page.keyboard.type("lines")
    expect(p.page.locator("#prompt")).to_have_value("two\nlines")
    p.page.keyboard.press("Enter")
    p.done()
    expect(p.page.locator(".bubble")).to_have_text("two\nlines")
    p.page.keyboard.press("Control+,")
    expect(p.page.locator("#settings")).to_be_visible()
    p.page.keyboard.press("Escape")
    expect(p.page.locator("#settings")).to_be_hidden()


@contextlib.contextmanager
def speech_model(p):
    urllib.request.urlopen(f"{p.url}/mock/speech/on")
    try:
        p.open()
        yield
    finally:
        urllib.request.urlopen(f"{p.url}/mock/speech/off")


WAV = b"RIFF" + bytes(40)


@test
def speech_buttons_are_for_speech_models(p):
    expect(p.page.locator("#upload")).to_be_hidden()
    expect(p.page.locator("#record")).to_be_hidden()
    with speech_model(p):
        expect(p.page.locator("#upload")).to_be_visible()
        expect(p.page.locator("#record")).to_be_visible()
        expect(p.page.locator(".suggestions")).to_be_hidden()
        p.page.fill("#prompt", "Kennedy")
        expect(p.page.locator("#send")).to_be_disabled()


@test
def uploads_a_recording(p):
    with speech_model(p):
        p.page.fill("#prompt", "Kennedy")
        p.page.set_input_files("#sound", {"name": "jfk.wav", "mimeType": "audio/wav", "buffer": WAV})
        expect(p.answer()).to_have_text("Ask not what.")
        p.done()
        expect(p.page.locator(".bubble")).to_have_text("jfk.wav")
        expect(p.page.locator("[data-action=regenerate]")).to_have_count(0)
        p.shot("speech")
        last = p.requests()[-1]
        assert last["file"] == "jfk.wav" and last["prompt"] == "Kennedy" and last["stream"] == "true", last
        assert last["model"] == "whisper-base" and last["bytes"] == len(WAV), last
        p.page.set_input_files("#sound", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no sound"})
        expect(p.page.locator(".failure").last).to_contain_text("unknown audio format")


@test(permissions=["microphone"])
def records_with_the_microphone(p):
    with speech_model(p):
        p.page.click("#record")
        has_class(p.page.locator("#record"), "recording")
        p.page.wait_for_timeout(1200)
        p.page.click("#record")
        expect(p.answer()).to_have_text("Ask not what.", timeout=20000)
        last = p.requests()[-1]
        # At least half a second of 16-bit samples at 16 kHz.
        assert last["begins"] == "RIFF" and last["bytes"] > 16000, last
        expect(p.page.locator("#record")).to_have_attribute("aria-pressed", "false")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; the mock when absent")
    parser.add_argument("--shots", type=pathlib.Path)
    parser.add_argument("--only", default="", help="run the tests whose name contains this")
    parser.add_argument("--chromium", help="without it: /usr/bin/chromium, else playwright's own")
    args = parser.parse_args()
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    url = args.url.rstrip("/") if args.url else mock_server.start()[1]
    system = pathlib.Path("/usr/bin/chromium")
    chromium = args.chromium or (str(system) if system.exists() else None)
    passed = failed = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"])
        for function, mock_only, context in TESTS:
            if args.only not in function.__name__ or (mock_only and args.url):
                continue
            page = None
            try:
                page = Page(browser, url, args.shots, real=bool(args.url), **context)
                function(page)
                assert not page.problems, page.problems
                assert not page.outside, f"requests to elsewhere: {page.outside}"
                passed += 1
                print(f"ok    {function.__name__}", flush=True)
            except Exception:
                failed += 1
                print(f"FAIL  {function.__name__}\n{traceback.format_exc(limit=4)}", flush=True)
                if page:
                    print(f"      problems: {page.problems}", flush=True)
                    with contextlib.suppress(Exception):
                        page.shot(f"failed_{function.__name__}")
            finally:
                if page:
                    page.context.close()
        browser.close()
    print(f"web: {passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
