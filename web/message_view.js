// One message on the page: a question, or an answer that grows while it streams.
import {MarkdownView} from "./markdown.js";

function element(name, className, ...children) {
  const node = document.createElement(name);
  node.className = className;
  node.append(...children);
  return node;
}

function button(label, onClick) {
  const node = element("button", "quiet", label);
  node.type = "button";
  node.addEventListener("click", onClick);
  return node;
}

export class QuestionView {
  constructor(message) {
    this.root = element("article", "message user", element("div", "text", message.content));
  }
}

// An answer: reasoning (folded), text, error, and a line of figures and actions below. update() brings the
// page up to date with the message; drawing waits for the next frame, however fast tokens come.
export class AnswerView {
  #message;
  #actions;  // {retry, copy}
  #reasoning = element("div", "markdown");
  #reasoningLabel = element("summary", "", "Reasoning");
  #fold = element("details", "reasoning", this.#reasoningLabel, this.#reasoning);
  #waiting = element("p", "waiting", "Reading …");
  #text = element("div", "markdown text");
  #error = element("p", "error");
  #figures = element("span", "figures");
  #tail = element("div", "tail");
  #reasoningMarkdown = new MarkdownView(this.#reasoning);
  #textMarkdown = new MarkdownView(this.#text);
  #frame = 0;
  #drawn = () => {};

  constructor(message, actions) {
    this.#message = message;
    this.#actions = actions;
    this.#error.setAttribute("role", "alert");
    this.root = element("article", "message assistant", this.#fold, this.#waiting, this.#text, this.#error,
                        this.#tail);
    this.draw();
  }

  // onDrawn runs after the page shows the message, for scrolling.
  update(onDrawn) {
    this.#drawn = onDrawn;
    this.#frame ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const {content, reasoning = "", error, streaming = false} = this.#message;
    this.root.classList.toggle("streaming", streaming);
    this.root.setAttribute("aria-busy", String(streaming));
    this.#fold.hidden = reasoning === "";
    if (reasoning !== "") this.#reasoningMarkdown.update(reasoning);
    this.#reasoningLabel.textContent = streaming && content === "" ? "Reasoning …" : "Reasoning";
    this.#waiting.hidden = !streaming || content !== "" || reasoning !== "";
    this.#textMarkdown.update(content);
    this.#error.hidden = !error;
    this.#error.textContent = error ?? "";
    this.#drawTail(streaming);
    this.#drawn();
  }

  #drawTail(streaming) {
    this.#figures.textContent = describe(this.#message);
    const actions = [];
    if (!streaming) {
      if (this.#message.content !== "") actions.push(button("Copy", this.#actions.copy));
      if (this.#actions.retry) actions.push(button("Try again", this.#actions.retry));
    }
    this.#tail.replaceChildren(this.#figures, ...actions);
  }

  // Only the last answer can be tried again.
  setRetry(retry) {
    if (this.#actions.retry === retry) return;
    this.#actions = {...this.#actions, retry};
    this.draw();
  }
}

const count = new Intl.NumberFormat("en");

// "128 tokens · 57.8 tokens/s · first token after 0.31 s · context 310 of 8,192 · stopped"
function describe({stats, note}) {
  const parts = [];
  if (stats?.tokens > 0) parts.push(`${count.format(stats.tokens)} ${stats.tokens === 1 ? "token" : "tokens"}`);
  if (stats?.rate > 0) parts.push(`${stats.rate.toFixed(1)} tokens/s`);
  if (stats?.firstTokenMs > 0) parts.push(`first token after ${(stats.firstTokenMs / 1000).toFixed(2)} s`);
  if (stats?.context > 0) {
    const limit = stats.contextLimit ? ` of ${count.format(stats.contextLimit)}` : "";
    parts.push(`context ${count.format(stats.context)}${limit}`);
  }
  if (note) parts.push(note);
  return parts.join(" · ");
}
