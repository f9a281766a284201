"""The chat page in headless Chromium, against a fake of the API and, with NIBBLE_URL, a real server."""
import os
import re
import time

import pytest

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright from PyPI")
from fake_api import MARKDOWN, FakeApi  # noqa: E402

expect = playwright_api.expect
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
expect.set_options(timeout=30_000)  # machines that run tests are busy


@pytest.fixture(scope="module")
def browser():
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"{CHROMIUM} is not there: install Debian's chromium")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def api():
    api = FakeApi()
    api.start()
    yield api
    api.stop()


@pytest.fixture
def context(browser):
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    context.set_default_timeout(30_000)
    yield context
    context.close()


@pytest.fixture
def page(context):
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    # Chromium logs every refused request as an error; policy violations and our own errors are what counts.
    page.on("console", lambda message: page.problems.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text else None)
    yield page
    assert page.problems == []


@pytest.fixture
def chat(page, api):
    page.goto(api.url)
    expect(page.locator("#model-name")).to_have_text("fake/Model-0.1B")
    return page


@pytest.fixture(scope="module")
def library(browser):
    """A page for calling markdown.js alone; shared, since it keeps nothing."""
    api = FakeApi()
    api.start()
    page = browser.new_page()
    page.goto(api.url)
    yield page
    page.close()
    api.stop()


def say(page, text):
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")


def last(page):
    return page.locator(".message.assistant").last


def wait_done(page):
    expect(last(page)).to_have_attribute("aria-busy", "false")


def test_several_turns_are_sent_and_kept(chat, api):
    say(chat, "one")
    wait_done(chat)
    expect(last(chat).locator(".text")).to_have_text("You said: one")
    say(chat, "two")
    wait_done(chat)
    assert api.requests[1]["messages"] == [
        {"role": "user", "content": "one"}, {"role": "assistant", "content": "You said: one"},
        {"role": "user", "content": "two"}]
    assert api.requests[1]["model"] == "fake/Model-0.1B"
    assert "temperature" not in api.requests[1]

    chat.reload()
    expect(chat.locator(".message")).to_have_count(4)
    expect(last(chat).locator(".text")).to_have_text("You said: two")
    chat.locator("#new-chat").click()
    expect(chat.locator(".message")).to_have_count(0)
    expect(chat.locator("#welcome")).to_be_visible()
    chat.reload()
    expect(chat.locator(".message")).to_have_count(0)


def test_text_appears_while_it_streams(chat, api):
    api.token_seconds = 0.05
    say(chat, "a question of some length, so that its echo takes a while to arrive")
    expect(last(chat).locator(".text")).to_contain_text("You said")
    early = last(chat).locator(".text").inner_text()
    assert last(chat).get_attribute("aria-busy") == "true"
    wait_done(chat)
    whole = last(chat).locator(".text").inner_text()
    assert whole.startswith(early.rstrip()) and len(whole) > len(early)


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_request(chat, api, how):
    say(chat, "endless")
    expect(last(chat).locator(".text")).to_contain_text("on and on")
    if how == "button":
        chat.locator("#stop").click()
    else:
        chat.keyboard.press("Escape")
    wait_done(chat)
    assert api.gone.wait(20)
    expect(last(chat).locator(".figures")).to_contain_text(re.compile(r"\d+ tokens · .*stopped"))
    expect(chat.locator("#send")).to_be_visible()
    say(chat, "next")
    expect(last(chat).locator(".text")).to_have_text("You said: next")
    assert api.requests[-1]["messages"][1]["content"].startswith("on and on")


def test_figures_after_each_answer(chat, api):
    api.token_seconds = 0.05
    say(chat, "how fast are you?")
    wait_done(chat)
    figures = last(chat).locator(".figures").inner_text()
    tokens, rate = re.search(r"(\d+) tokens · ([\d.]+) tokens/s", figures).groups()
    assert int(tokens) == 7  # "You said: how fast are you?" in fours
    assert 0 < float(rate) <= 20.5  # one per 50 ms or slower
    assert "context 17 of 8,192" in figures
    assert api.requests[0]["stream_options"]["include_usage"] is True


def test_markdown_is_rendered(chat):
    say(chat, "markdown")
    wait_done(chat)
    text = last(chat).locator(".text")
    expect(text.locator("h1")).to_have_text("Tea and coffee")
    expect(text.locator("h1 em")).to_have_text("coffee")
    expect(text.locator("strong")).to_have_text("good")
    expect(text.locator("p > code")).to_have_text("sort()")
    expect(text.locator("del")).to_have_text("price")
    assert [a.get_attribute("href") for a in text.locator("a").all()] == [
        "https://example.org/a_(b)", "https://example.net/x"]
    assert text.locator("table tr").count() == 3
    expect(text.locator("tbody td.right").last).to_have_text("95 mg")
    expect(text.locator("ol > li")).to_have_count(2)
    expect(text.locator("ol > li > ul > li")).to_have_text("nested")
    expect(text.locator("li.task input:checked")).to_have_count(1)
    expect(text.locator("blockquote")).to_have_text("quoted")
    expect(text.locator("figure.code figcaption span")).to_have_text("python")
    assert text.locator("pre code").inner_text() == 'def brew(leaves):\n    return "<b>tea</b>" * leaves'


def test_hostile_text_is_inert(chat):
    asked = []
    chat.on("request", lambda request: asked.append(request.url))
    say(chat, "hostile")
    wait_done(chat)
    text = last(chat).locator(".text")
    assert text.locator("script, img, svg, iframe, [onclick], [onerror], [onload]").count() == 0
    assert [a.get_attribute("href") for a in text.locator("a").all()] == ["https://example.org/pixel.png"]
    expect(text).to_contain_text("<script>window.hacked = 1</script>")
    expect(text).to_contain_text("[click](javascript:window.hacked=3)")
    assert chat.evaluate("window.hacked") is None
    assert all("example.org" not in url and not url.endswith("/x") for url in asked)


# As CommonMark has it, with line breaks kept; checked against markdown-it.
MARKDOWN_CASES = [
    ("a *b* _c_ **d** __e__ ***f***",
     "<p>a <em>b</em> <em>c</em> <strong>d</strong> <strong>e</strong> <em><strong>f</strong></em></p>"),
    ("***a* b** and ***c** d*",
     "<p><strong><em>a</em> b</strong> and <em><strong>c</strong> d</em></p>"),
    ("snake_case_name 2 * 3 * 4 **open", "<p>snake_case_name 2 * 3 * 4 **open</p>"),
    ("*a **b** c* **d *e* f**", "<p><em>a <strong>b</strong> c</em> <strong>d <em>e</em> f</strong></p>"),
    ("\\*no\\* `a*b*` ``a`b`` `open", "<p>*no* <code>a*b*</code> <code>a`b</code> `open</p>"),
    ("# Title #\ntext\n***\n- a\n- b", "<h1>Title</h1><p>text</p><hr><ul><li>a</li><li>b</li></ul>"),
    ("#hash is text", "<p>#hash is text</p>"),
    ("3. c\n4. d", '<ol start="3"><li>c</li><li>d</li></ol>'),
    ("- a\n\n  b\n- c", "<ul><li><p>a</p><p>b</p></li><li><p>c</p></li></ul>"),
    ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
    ("a &lt; b & c <i>d</i>", "<p>a &lt; b &amp; c &lt;i&gt;d&lt;/i&gt;</p>"),
    ("the year\n1984. It was", "<p>the year<br>1984. It was</p>"),
]


@pytest.mark.parametrize("source,html", MARKDOWN_CASES)
def test_markdown_cases(library, source, html):
    rendered = library.evaluate("""async (source) => {
        const {renderMarkdown} = await import("./markdown.js");
        const holder = document.createElement("div");
        holder.append(renderMarkdown(source));
        return holder.innerHTML;
    }""", source)
    assert rendered == html


def test_growing_markdown_equals_the_whole(library):
    same = library.evaluate("""async (source) => {
        const {MarkdownView, renderMarkdown} = await import("./markdown.js");
        const [growing, whole] = [document.createElement("div"), document.createElement("div")];
        const view = new MarkdownView(growing);
        for (let end = 0; end <= source.length; ++end) view.update(source.slice(0, end));
        whole.append(renderMarkdown(source));
        return growing.innerHTML === whole.innerHTML;
    }""", MARKDOWN)
    assert same


@pytest.mark.parametrize("unit", ["*a_ ", "[", "](", "a\n", "|a\n|-\n", "- a\n", "***a ", "`a``", "> ", "- ", "<http", "|", "#", "~", "(", "**", "![a](b "])
def test_markdown_of_hostile_length_comes_through(library, unit):
    # Quadratic time or a deep recursion would show: as minutes, or as an exception.
    library.evaluate("""async (source) => {
        const {renderMarkdown} = await import("./markdown.js");
        renderMarkdown(source);
    }""", unit * (200_000 // len(unit)))


def test_reasoning_is_folded(chat):
    say(chat, "reasoning")
    wait_done(chat)
    fold = last(chat).locator("details.reasoning")
    expect(fold).to_be_visible()
    expect(fold.locator(".markdown")).to_be_hidden()
    fold.locator("summary").click()
    expect(fold.locator(".markdown")).to_have_text("Let me think about it.")
    expect(last(chat).locator(".text")).to_have_text("Forty-two.")


@pytest.mark.parametrize("question,words", [
    ("refused", "refused the request: temperature 9: must be between 0 and 2"),
    ("busy", "cannot take this now: all 64 places are taken"),
    ("breaks off", "The answer broke off: the deadline of 5 s has passed"),
    ("hangs up", "The connection was lost before the answer was complete."),
])
def test_errors_are_shown_and_can_be_retried(chat, api, question, words):
    say(chat, question)
    wait_done(chat)
    expect(last(chat).locator(".error")).to_contain_text(words)
    if question in ("breaks off", "hangs up"):
        expect(last(chat).locator(".text")).to_have_text("Half an ans")
    last(chat).get_by_role("button", name="Try again").click()
    expect(last(chat).locator(".error")).to_contain_text(words)
    assert len(api.requests) == 2 and api.requests[0] == api.requests[1]
    expect(chat.locator(".message")).to_have_count(2)


def test_a_turn_without_answer_is_not_sent_again(chat, api):
    say(chat, "refused")
    wait_done(chat)
    say(chat, "hello")
    wait_done(chat)
    assert api.requests[-1]["messages"] == [{"role": "user", "content": "hello"}]


def test_server_lost(chat, api):
    api.stop()
    say(chat, "anyone?")
    wait_done(chat)
    expect(last(chat).locator(".error")).to_contain_text("cannot be reached")
    expect(chat.locator("#banner")).to_contain_text("cannot be reached")


def test_cut_answer_says_so(chat):
    say(chat, "cut")
    wait_done(chat)
    expect(last(chat).locator(".figures")).to_contain_text("cut at the token limit")


def test_loading_is_shown(page, api):
    api.health = ("loading weights", 40.0)
    page.goto(api.url)
    expect(page.locator("#banner")).to_contain_text("loading weights: 40 %")
    assert page.locator("#banner-progress").evaluate("bar => bar.value") == 40
    page.locator("#prompt").fill("early")
    expect(page.locator("#send")).to_be_disabled()
    api.health = ("loading weights", 90.0)
    expect(page.locator("#banner")).to_contain_text("90 %")
    api.health = None
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#send")).to_be_enabled()


def test_key_is_asked_for_and_kept_for_the_tab(page, api):
    api.key = "secret"
    page.goto(api.url)
    expect(page.locator("#key-dialog")).to_be_visible()
    page.locator("#key").fill("wrong")
    page.locator("#key").press("Enter")
    expect(page.locator("#key-wrong")).to_be_visible()
    page.locator("#key").fill("secret")
    page.locator("#key").press("Enter")
    expect(page.locator("#model-name")).to_have_text("fake/Model-0.1B")
    assert page.evaluate("JSON.stringify(localStorage)").find("secret") == -1
    page.reload()
    say_when_ready(page, "hello")
    wait_done(page)
    expect(last(page).locator(".text")).to_have_text("You said: hello")


def say_when_ready(page, text):
    page.locator("#prompt").fill(text)
    expect(page.locator("#send")).to_be_enabled()
    page.locator("#prompt").press("Enter")


def test_settings_are_used_and_kept(chat, api):
    chat.locator("#open-settings").click()
    chat.locator("#system").fill("Answer in verse.")
    chat.locator("#temperature").fill("0.3")
    chat.locator("#max-tokens").fill("50")
    chat.get_by_role("button", name="Done").click()
    chat.reload()
    say_when_ready(chat, "hi")
    wait_done(chat)
    sent = api.requests[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Answer in verse."}
    assert (sent["temperature"], sent["max_tokens"]) == (0.3, 50)


def test_shift_enter_breaks_the_line(chat, api):
    chat.locator("#prompt").press_sequentially("a")
    chat.locator("#prompt").press("Shift+Enter")
    chat.locator("#prompt").press_sequentially("b")
    chat.locator("#prompt").press("Enter")
    wait_done(chat)
    assert api.requests[-1]["messages"][0]["content"] == "a\nb"


def test_code_is_copied(context, chat, api):
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=api.url)
    say(chat, "markdown")
    wait_done(chat)
    chat.locator(".code .copy").click()
    expect(chat.locator(".code .copy")).to_have_text("Copied")
    assert chat.evaluate("navigator.clipboard.readText()").startswith("def brew(leaves):\n")


@pytest.mark.skipif("NIBBLE_URL" not in os.environ, reason="NIBBLE_URL names no server")
def test_real_server(page):
    page.goto(os.environ["NIBBLE_URL"])
    expect(page.locator("#status")).to_have_attribute("data-state", "ready", timeout=120_000)
    for question in ("What is the capital of France?", "And of Italy?"):
        say(page, question)
        expect(last(page)).to_have_attribute("aria-busy", "false", timeout=120_000)
        expect(last(page).locator(".error")).to_be_hidden()
        assert last(page).locator(".text").inner_text().strip() != ""
        expect(last(page).locator(".figures")).to_contain_text("tokens/s")
    say(page, "Write a long story about a lighthouse.")
    expect(last(page).locator(".text")).not_to_be_empty(timeout=60_000)
    started = time.monotonic()
    page.keyboard.press("Escape")
    wait_done(page)
    assert time.monotonic() - started < 10
