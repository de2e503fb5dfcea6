// Markdown to DOM nodes, never to HTML text: what a model writes can become a paragraph, a list, a
// code block or a link, and nothing else. Images are shown as their text: a picture from elsewhere
// would tell its host what was asked.

const BLOCKS = {
  fence: /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/,
  heading: /^ {0,3}(#{1,6})\s+(.+?)\s*#*$/,
  rule: /^ {0,3}([-*_])(\s*\1){2,}\s*$/,
  quote: /^ {0,3}>\s?(.*)$/,
  bullet: /^(\s{0,3})[-*+]\s+(.*)$/,
  number: /^(\s{0,3})(\d{1,9})[.)]\s+(.*)$/,
};

// One alternative a mark; the first that matches at the leftmost place wins.
const INLINE =
  /(`+)([\s\S]*?[^`])\1(?!`)|\*\*([^*\n]+?)\*\*|__([^_\n]+?)__|\*([^*\s][^*\n]*?)\*|!?\[([^\]\n]*)\]\(([^)\s]+)\)|(https?:\/\/[^\s<>"')\]]+)/g;

// A hostile answer may nest quotes without end.
const MAX_DEPTH = 8;

export function render(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
  return fragment;
}

function* blocks(lines, depth) {
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    let found;
    if (!line.trim()) {
      at += 1;
    } else if ((found = BLOCKS.fence.exec(line))) {
      const end = run(lines, at + 1, (l) => !l.trim().startsWith(found[1]));
      yield code(lines.slice(at + 1, end).join("\n"), found[2]);
      at = end + 1;
    } else if ((found = BLOCKS.heading.exec(line))) {
      // The page has its own first two levels.
      yield element(`h${Math.min(6, found[1].length + 2)}`, ...inline(found[2]));
      at += 1;
    } else if (BLOCKS.rule.test(line)) {
      yield element("hr");
      at += 1;
    } else if (depth < MAX_DEPTH && BLOCKS.quote.test(line)) {
      const end = run(lines, at, (l) => BLOCKS.quote.test(l));
      const inner = lines.slice(at, end).map((l) => BLOCKS.quote.exec(l)[1]);
      yield element("blockquote", ...blocks(inner, depth + 1));
      at = end;
    } else if (BLOCKS.bullet.test(line) || BLOCKS.number.test(line)) {
      const kind = BLOCKS.bullet.test(line) ? BLOCKS.bullet : BLOCKS.number;
      const end = run(lines, at, (l) => kind.test(l) || /^\s{2,}\S/.test(l));
      yield list(lines.slice(at, end), kind);
      at = end;
    } else {
      const end = run(lines, at, (l, i) => l.trim() && (i === at || !startsBlock(l)));
      yield element("p", ...inline(lines.slice(at, end).join("\n")));
      at = end;
    }
  }
}

function startsBlock(line) {
  return Object.values(BLOCKS).some((block) => block.test(line));
}

function run(lines, start, belongs) {
  let end = start;
  while (end < lines.length && belongs(lines[end], end)) end += 1;
  return end;
}

function list(lines, kind) {
  const first = kind.exec(lines[0]);
  const node = element(kind === BLOCKS.number ? "ol" : "ul");
  if (kind === BLOCKS.number) node.start = Number(first[2]);
  for (const line of lines) {
    const item = kind.exec(line);
    if (item) node.append(element("li", ...inline(item.at(-1))));
    else node.lastChild.append("\n", ...inline(line.trim()));
  }
  return node;
}

function code(text, language) {
  const inner = element("code", text);
  if (language) inner.dataset.language = language;
  return element("pre", inner);
}

function* inline(text) {
  let done = 0;
  for (const found of text.matchAll(INLINE)) {
    if (found.index > done) yield text.slice(done, found.index);
    yield mark(found);
    done = found.index + found[0].length;
  }
  if (done < text.length) yield text.slice(done);
}

function mark([whole, , codeText, strong, alsoStrong, emphasis, label, address, bare]) {
  if (codeText !== undefined) return element("code", codeText);
  if (strong ?? alsoStrong) return element("strong", strong ?? alsoStrong);
  if (emphasis) return element("em", emphasis);
  if (bare) return link(bare, bare);
  return whole.startsWith("!") ? label || whole : link(label || address, address);
}

// Only addresses that cannot run anything; the rest stays text.
function link(label, address) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return `[${label}](${address})`;
  }
  if (url.protocol !== "https:" && url.protocol !== "http:") return `[${label}](${address})`;
  const node = element("a", label);
  node.href = url.href;
  node.rel = "noopener noreferrer nofollow";
  node.target = "_blank";
  return node;
}

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}
