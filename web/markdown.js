// Markdown as language models write it, to DOM nodes.
//
// Safe by construction: text only ever becomes text nodes, elements come from the fixed names below, and
// the only attributes set from the source are href, behind a check for http, https and mailto, and the
// start of a list. HTML in the source is shown as text, images become links, nothing is fetched.
// Time is linear in the source but for a bounded nesting depth.
//
// Blocks: paragraphs, # headings, lists (nested, tasks), > quotes, ``` and ~~~ fences, tables, rules.
// Inline: `code`, **strong**, *emphasis*, ~~struck~~, [links](https://…), bare URLs, \escapes, <br>.

const MAX_DEPTH = 12;  // of quotes and lists
const MAX_OPEN = 24;   // unclosed emphasis marks at a time
const MAX_TARGET = 2000;  // characters
const MAX_COLUMNS = 64;

// No pattern below backtracks more than a constant times: answers may be hostile.
const FENCE = /^ {0,3}(`{3,}|~{3,}(?!~))([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: (.*))?$/;
const RULE = /^ {0,3}(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:( +)(.*)|)$/;

// Shows text in container and, called again with a longer text, replaces only the blocks that changed.
export class MarkdownView {
  #container;
  #shown = [];  // the source of each child

  constructor(container) {
    this.#container = container;
  }

  update(text) {
    const blocks = splitBlocks(text.replaceAll("\t", "    ").split(/\r?\n/));
    const sources = blocks.map((block) => JSON.stringify(block));
    let same = 0;
    while (same < sources.length && sources[same] === this.#shown[same]) ++same;
    while (this.#container.childNodes.length > same) this.#container.lastChild.remove();
    for (const block of blocks.slice(same)) this.#container.append(renderBlock(block, 0));
    this.#shown = sources;
  }
}

export function renderMarkdown(text) {
  const fragment = document.createDocumentFragment();
  new MarkdownView(fragment).update(text);
  return fragment;
}

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

// ---- Blocks: lines to plain descriptions, descriptions to nodes ----

function splitBlocks(lines) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      ++at;
      continue;
    }
    const [block, next] = readFence(lines, at) ?? readHeading(lines, at) ?? readRule(lines, at) ??
        readQuote(lines, at) ?? readList(lines, at) ?? readTable(lines, at) ?? readParagraph(lines, at);
    blocks.push(block);
    at = next;
  }
  return blocks;
}

function startsBlock(lines, at) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  // "1984. It was" inside a paragraph is a sentence; a list there begins with 1.
  if (item && item[4] && (!/^\d/.test(item[2]) || parseInt(item[2], 10) === 1)) return true;
  return isTable(lines, at);
}

function readFence(lines, at) {
  const open = FENCE.exec(lines[at]);
  if (!open) return null;
  const indent = lines[at].search(/\S/);
  const close = new RegExp(`^ {0,3}\\${open[1][0]}{${open[1].length},}\\s*$`);
  const body = [];
  let next = at + 1;
  for (; next < lines.length && !close.test(lines[next]); ++next) body.push(dedent(lines[next], indent));
  return [{kind: "code", language: open[2].trim().split(" ")[0], text: body.join("\n")}, next + 1];
}

function readHeading(lines, at) {
  const match = HEADING.exec(lines[at]);
  if (!match) return null;
  const text = (match[2] ?? "").trim();
  const end = trimmedEnd(text, "#");  // "# Title #" is closed like that
  const closed = end < text.length && (end === 0 || text[end - 1] === " ");
  return [{kind: "heading", level: match[1].length, text: closed ? text.slice(0, end).trim() : text}, at + 1];
}

function readRule(lines, at) {
  return RULE.test(lines[at]) ? [{kind: "rule"}, at + 1] : null;
}

function readQuote(lines, at) {
  const body = [];
  for (; at < lines.length && QUOTE.test(lines[at]); ++at) body.push(lines[at].replace(QUOTE, ""));
  return body.length > 0 ? [{kind: "quote", lines: body}, at] : null;
}

function readList(lines, at) {
  const first = ITEM.exec(lines[at]);
  if (!first) return null;
  const ordered = /^\d/.test(first[2]);
  const list = {kind: "list", ordered, start: parseInt(first[2], 10) || 0, loose: false, items: []};
  const base = first[1].length;
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    const belongs = item && item[1].length <= base + 1 && !RULE.test(lines[at]) &&
        item[2].slice(-1) === first[2].slice(-1);
    if (!belongs) break;
    const content = item[1].length + item[2].length + Math.min((item[3] ?? " ").length, 4);
    const body = [item[4] ?? ""];
    let blank = false;
    for (++at; at < lines.length; ++at) {
      const line = lines[at];
      const indent = line.search(/\S/);
      if (indent < 0) {
        blank = true;
        body.push("");
        continue;
      }
      // Models indent what belongs to an item by 2 or more, whatever the marker's width.
      const inside = indent >= Math.min(content, base + 2);
      const lazy = !blank && !startsBlock(lines, at) && !ITEM.test(line);
      if (!inside && !lazy) break;
      if (blank && inside && !ITEM.test(line)) list.loose = true;
      body.push(dedent(line, content));
      blank = false;
    }
    list.items.push(body);
  }
  return [list, at];
}

function isTable(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !lines[at + 1].includes("|")) return false;
  const delimiters = cells(lines[at + 1]);
  return delimiters.length <= MAX_COLUMNS && delimiters.every((cell) => /^:?-+:?$/.test(cell)) && delimiters.length === cells(lines[at]).length;
}

function readTable(lines, at) {
  if (!isTable(lines, at)) return null;
  const head = cells(lines[at]);
  const align = cells(lines[at + 1]).map(
      (cell) => cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left");
  const rows = [];
  for (at += 2; at < lines.length && lines[at].includes("|"); ++at) rows.push(cells(lines[at]));
  return [{kind: "table", head, align, rows}, at];
}

function cells(line) {
  const text = line.trim().replace(/^\|/, "");
  const out = [];
  let cell = "";
  for (let i = 0; i < text.length; ++i) {
    if (text[i] === "\\" && text[i + 1] === "|") {
      cell += "|";
      ++i;
    } else if (text[i] === "|") {
      out.push(cell.trim());
      cell = "";
    } else {
      cell += text[i];
    }
  }
  if (cell.trim() !== "") out.push(cell.trim());
  return out;
}

function readParagraph(lines, at) {
  const body = [lines[at].trim()];
  for (++at; at < lines.length && lines[at].trim() !== "" && !startsBlock(lines, at); ++at) {
    body.push(lines[at].trim());
  }
  return [{kind: "paragraph", text: body.join("\n")}, at];
}

// Where text ends when its last characters that are among chars are left off.
function trimmedEnd(text, chars) {
  let end = text.length;
  while (end > 0 && chars.includes(text[end - 1])) --end;
  return end;
}

function dedent(line, count) {
  let spaces = 0;
  while (spaces < count && line[spaces] === " ") ++spaces;
  return line.slice(spaces);
}

function renderBlock(block, depth) {
  switch (block.kind) {
    case "code":
      return renderCode(block);
    case "heading":
      return element(`h${block.level}`, renderInline(block.text));
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", renderLines(block.lines, depth + 1));
    case "list":
      return renderList(block, depth);
    case "table":
      return renderTable(block);
    default:
      return element("p", renderInline(block.text));
  }
}

function renderLines(lines, depth) {
  const fragment = document.createDocumentFragment();
  if (depth > MAX_DEPTH) {
    fragment.append(element("p", lines.join("\n")));
  } else {
    for (const block of splitBlocks(lines)) fragment.append(renderBlock(block, depth));
  }
  return fragment;
}

function renderCode({language, text}) {
  const copy = element("button", "Copy");
  copy.type = "button";
  copy.className = "copy";
  const figure = element("figure", element("figcaption", element("span", language || "text"), copy),
                         element("pre", element("code", text)));
  figure.className = "code";
  return figure;
}

function renderList({ordered, start, loose, items}, depth) {
  const list = element(ordered ? "ol" : "ul");
  if (ordered && start !== 1) list.start = start;
  for (const lines of items) {
    const task = /^\[([ xX])\] /.exec(lines[0]);
    const body = task ? [lines[0].slice(task[0].length), ...lines.slice(1)] : lines;
    const item = element("li", renderLines(body, depth + 1));
    if (!loose) {
      for (const paragraph of [...item.children].filter((child) => child.tagName === "P")) {
        const bare = document.createDocumentFragment();
        while (paragraph.firstChild) bare.append(paragraph.firstChild);
        paragraph.replaceWith(bare);
      }
    }
    if (task) {
      const box = element("input");
      box.type = "checkbox";
      box.disabled = true;
      box.checked = task[1] !== " ";
      item.prepend(box, " ");
      item.className = "task";
    }
    list.append(item);
  }
  return list;
}

function renderTable({head, align, rows}) {
  const row = (texts, name) => element("tr", ...head.map((_, column) => {
    const cell = element(name, renderInline(texts[column] ?? ""));
    cell.className = align[column];
    return cell;
  }));
  const body = element("tbody");
  for (const texts of rows) body.append(row(texts, "td"));
  const wrapper = element("div", element("table", element("thead", row(head, "th")), body));
  wrapper.className = "table";
  return wrapper;
}

// ---- Inline ----

const BARE_URL = /https?:\/\/[^\s<>"`]+/y;
const ANGLE_URL = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const BREAK = /<br\s*\/?>/iy;
const ENTITY = /&(amp|lt|gt|quot|apos|nbsp|#39);/y;
const ENTITIES = {amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", "#39": "'"};
const TARGET = /^\(\s*<?([^\s<>]*)>?(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)$/;
const TAGS = {"*1": "em", "_1": "em", "*2": "strong", "_2": "strong", "~2": "del"};

export function renderInline(text, linkable = true) {
  return new Inline(text, linkable).render();
}

function matchAt(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

// The URL as the browser reads it, if it is one that cannot run anything; else null.
function safeUrl(target) {
  try {
    const url = new URL(target);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;  // relative: it would point into this server
  }
}

function link(href, content) {
  const anchor = element("a", content);
  anchor.href = href;
  anchor.title = href;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer nofollow";
  return anchor;
}

class Inline {
  #text;
  #linkable;
  #at = 0;
  #literal = "";
  // Open emphasis, outermost first; the bottom frame is the result. An unclosed one becomes text again.
  #frames = [{char: "", count: 0, node: document.createDocumentFragment()}];
  #unclosedTicks = new Set();
  #brackets = null;  // position of "[" to that of its "]"

  constructor(text, linkable) {
    this.#text = text;
    this.#linkable = linkable;
  }

  render() {
    while (this.#at < this.#text.length) {
      if (!this.#special(this.#text[this.#at])) this.#literal += this.#text[this.#at++];
    }
    while (this.#frames.length > 1) this.#dissolve();
    this.#flush();
    return this.#frames[0].node;
  }

  #special(char) {
    switch (char) {
      case "\n":
        return this.#emit(element("br"), 1);
      case "\\":
        return this.#escape();
      case "`":
        return this.#code();
      case "*":
      case "_":
      case "~":
        return this.#emphasis(char);
      case "[":
        return this.#link(this.#at);
      case "!":
        return this.#text[this.#at + 1] === "[" && this.#link(this.#at + 1);
      case "<":
        return this.#angle();
      case "&":
        return this.#entity();
      case "h":
        return this.#bareUrl();
      default:
        return false;
    }
  }

  #flush() {
    if (this.#literal !== "") this.#frames.at(-1).node.append(this.#literal);
    this.#literal = "";
  }

  #emit(node, length) {
    this.#flush();
    this.#frames.at(-1).node.append(node);
    this.#at += length;
    return true;
  }

  #escape() {
    const next = this.#text[this.#at + 1] ?? "";
    if (next === "\n") return this.#emit(element("br"), 2);
    if (!/^[!-/:-@[-`{-~]$/.test(next)) return false;
    this.#literal += next;
    this.#at += 2;
    return true;
  }

  #run(char) {
    let end = this.#at;
    while (this.#text[end] === char) ++end;
    return end - this.#at;
  }

  #code() {
    const length = this.#run("`");
    const ticks = "`".repeat(length);
    let end = this.#unclosedTicks.has(length) ? -1 : this.#text.indexOf(ticks, this.#at + length);
    while (end >= 0 && this.#text[end + length] === "`") {
      let past = end;
      while (this.#text[past] === "`") ++past;
      end = this.#text.indexOf(ticks, past);
    }
    if (end < 0) {
      this.#unclosedTicks.add(length);
      this.#literal += ticks;
      this.#at += length;
      return true;
    }
    let code = this.#text.slice(this.#at + length, end).replaceAll("\n", " ");
    if (/^ .*[^ ].* $/.test(code) || /^ [^ ] $/.test(code)) code = code.slice(1, -1);
    return this.#emit(element("code", code), end + length - this.#at);
  }

  #emphasis(char) {
    const length = this.#run(char);
    const before = this.#text[this.#at - 1] ?? " ";
    const after = this.#text[this.#at + length] ?? " ";
    const word = /[\p{L}\p{N}]/u;
    const inWord = word.test(before) && word.test(after) && char === "_";
    const opens = !/\s/.test(after) && !inWord;
    const closes = !/\s/.test(before) && !inWord;
    this.#at += length;
    const left = closes ? this.#close(char, length) : length;
    if (left > 0 && opens && this.#frames.length < MAX_OPEN && (char !== "~" || left === 2)) {
      this.#flush();
      this.#frames.push({char, count: left, node: document.createDocumentFragment()});
    } else {
      this.#literal += char.repeat(left);
    }
    return true;
  }

  // Closes what a run of marks can close; returns how many marks are left. Of three opening marks, one or
  // two may be closed first: ***a* b** and ***a** b*.
  #close(char, length) {
    while (length > 0) {
      const found = this.#frames.findLastIndex(
          (frame) => frame.char === char && (frame.count <= length || frame.count > 2));
      if (found < 1) break;
      while (this.#frames.length - 1 > found) this.#dissolve();
      this.#flush();
      const frame = this.#frames[found];
      const size = Math.min(2, frame.count, length);
      const emphasised = element(TAGS[char + size], frame.node);
      frame.count -= size;
      if (frame.count === 0) this.#frames.pop();
      this.#frames.at(-1).node.append(emphasised);
      length -= size;
    }
    return length;
  }

  #dissolve() {
    this.#flush();
    const {char, count, node} = this.#frames.pop();
    this.#frames.at(-1).node.append(char.repeat(count), node);
  }

  #link(open) {
    const close = this.#linkable ? this.#matchingBracket(open) : undefined;
    if (close === undefined || this.#text[close + 1] !== "(") return false;
    const parenthesised = this.#text.slice(close + 1, close + 1 + MAX_TARGET);
    const target = TARGET.exec(balanced(parenthesised));
    const href = target && safeUrl(target[1]);
    if (!href) return false;
    const content = this.#text.slice(open + 1, close);
    return this.#emit(link(href, content === "" ? href : renderInline(content, false)),
                      close + 1 + target[0].length - this.#at);
  }

  #matchingBracket(open) {
    if (!this.#brackets) {
      this.#brackets = new Map();
      const stack = [];
      for (let i = 0; i < this.#text.length; ++i) {
        if (this.#text[i] === "\\") ++i;
        else if (this.#text[i] === "[") stack.push(i);
        else if (this.#text[i] === "]" && stack.length > 0) this.#brackets.set(stack.pop(), i);
      }
    }
    return this.#brackets.get(open);
  }

  #angle() {
    const broken = matchAt(BREAK, this.#text, this.#at);
    if (broken) return this.#emit(element("br"), broken[0].length);
    const match = this.#linkable && matchAt(ANGLE_URL, this.#text, this.#at);
    const href = match && safeUrl(match[1]);
    return href ? this.#emit(link(href, match[1]), match[0].length) : false;
  }

  #entity() {
    const match = matchAt(ENTITY, this.#text, this.#at);
    if (!match) return false;
    this.#literal += ENTITIES[match[1]];
    this.#at += match[0].length;
    return true;
  }

  #bareUrl() {
    if (!this.#linkable || /\w/.test(this.#text[this.#at - 1] ?? "")) return false;
    const match = matchAt(BARE_URL, this.#text, this.#at);
    if (!match) return false;
    const url = withoutTrailingMarks(match[0]);
    const href = safeUrl(url);
    return href ? this.#emit(link(href, url), url.length) : false;
  }
}

// "(a(b)c) rest" to "(a(b)c)": the parenthesis that text begins with, or "" where it stays open.
function balanced(text) {
  let depth = 0;
  for (let i = 0; i < text.length; ++i) {
    if (text[i] === "(") ++depth;
    if (text[i] === ")" && --depth === 0) return text.slice(0, i + 1);
    if (text[i] === "\n") return "";
  }
  return "";
}

// "https://a.example/x_(y))**." to "https://a.example/x_(y)": what follows a URL in a sentence is not its.
function withoutTrailingMarks(url) {
  let excess = url.split(")").length - url.split("(").length;
  let end = url.length;
  while (end > 0) {
    if (url[end - 1] === ")" && excess > 0) {
      --excess;
      --end;
    } else if (".,:;!?'*_~".includes(url[end - 1])) {
      --end;
    } else {
      break;
    }
  }
  return url.slice(0, end);
}
