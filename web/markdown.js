// Markdown to HTML: no raw HTML passes, code is highlighted, maths is set by KaTeX.
import { icon } from './icons.js';

const escapeHtml = (text) => text.replace(/[&<>"]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c]);

const kGuessed = ['python', 'javascript', 'cpp', 'bash', 'json', 'xml', 'sql', 'css', 'java', 'rust', 'go'];
const highlighted = new Map();  // code text -> HTML, so that a growing answer is not highlighted over and over

function highlight(code, language) {
  const key = `${language}\n${code}`;
  if (highlighted.has(key)) return highlighted.get(key);
  let html = escapeHtml(code);
  try {
    if (language && hljs.getLanguage(language)) html = hljs.highlight(language, code, true).value;
    else if (!language && code.length < 4000) html = hljs.highlightAuto(code, kGuessed).value;
  } catch { /* keep the plain text */ }
  if (highlighted.size > 200) highlighted.clear();
  highlighted.set(key, html);
  return html;
}

function codeBlock(code, info) {
  const language = info.trim().split(/\s+/)[0].toLowerCase().replace(/[^\w+#-]/g, '');
  return `<div class="code"><div class="code-head"><span>${escapeHtml(language || 'text')}</span>`
    + `<button type="button" class="copy-code" aria-label="Copy the code">${icon('copy')}<span>Copy</span></button></div>`
    + `<pre tabindex="0"><code class="hljs">${highlight(code, language)}</code></pre></div>`;
}

function math(source, display) {
  try {
    return katex.renderToString(source, { displayMode: display, throwOnError: false, trust: false, maxSize: 40, maxExpand: 200 });
  } catch {
    return `<code>${escapeHtml(source)}</code>`;
  }
}

// \( … \), \[ … \], $$ … $$ and $ … $ (not "$5 and $6").
function mathInline(state, silent) {
  const { src, pos } = state;
  let open = null;
  let close = null;
  if (src.startsWith('\\(', pos)) [open, close] = ['\\(', '\\)'];
  else if (src.startsWith('\\[', pos)) [open, close] = ['\\[', '\\]'];
  else if (src.startsWith('$$', pos)) [open, close] = ['$$', '$$'];
  else if (src[pos] === '$') [open, close] = ['$', '$'];
  if (!open) return false;
  const start = pos + open.length;
  let end = src.indexOf(close, start);
  while (end > 0 && src[end - 1] === '\\' && close[0] === '$') end = src.indexOf(close, end + 1);
  if (end <= start || end + close.length > state.posMax) return false;
  const content = src.slice(start, end);
  if (close === '$' && (/^\s|\s$/.test(content) || /[0-9]/.test(src[end + 1] ?? '') || content.includes('\n\n'))) return false;
  if (!silent) {
    const token = state.push('math', '', 0);
    token.content = content.trim();
    token.meta = { display: close === '$$' || close === '\\]' };
  }
  state.pos = end + close.length;
  return true;
}

// $$ or \[ that starts a line, up to its end.
function mathBlock(state, startLine, endLine, silent) {
  const lineText = (line) => state.src.slice(state.bMarks[line] + state.tShift[line], state.eMarks[line]);
  const first = lineText(startLine);
  const close = first.startsWith('$$') ? '$$' : first.startsWith('\\[') ? '\\]' : null;
  if (!close) return false;
  const lines = [first.slice(2)];
  let line = startLine;
  while (!lines[lines.length - 1].includes(close)) {
    if (++line >= endLine || (state.sCount[line] < state.blkIndent && lineText(line))) return false;
    lines.push(lineText(line));
  }
  const last = lines[lines.length - 1];
  if (last.slice(last.indexOf(close) + 2).trim()) return false;
  if (silent) return true;
  lines[lines.length - 1] = last.slice(0, last.indexOf(close));
  const token = state.push('math', '', 0);
  token.block = true;
  token.content = lines.join('\n').trim();
  token.meta = { display: true };
  token.map = [startLine, line + 1];
  state.line = line + 1;
  return true;
}

let renderer = null;

function makeRenderer() {
  const md = window.markdownit({ html: false, linkify: true, breaks: false, typographer: false });
  md.inline.ruler.before('escape', 'math', mathInline);
  md.block.ruler.before('fence', 'math', mathBlock, { alt: ['paragraph', 'reference', 'blockquote', 'list'] });
  md.renderer.rules.math = (tokens, i) => math(tokens[i].content, tokens[i].meta.display);
  md.renderer.rules.fence = (tokens, i) => codeBlock(tokens[i].content, tokens[i].info);
  md.renderer.rules.code_block = (tokens, i) => codeBlock(tokens[i].content, '');
  // Pictures would tell a stranger's server what is being read: they become links.
  md.renderer.rules.image = (tokens, i) => {
    const src = tokens[i].attrGet('src');
    const label = tokens[i].content || src;
    return `<a href="${escapeHtml(src)}" target="_blank" rel="noopener noreferrer nofollow">${escapeHtml(label)}</a>`;
  };
  md.renderer.rules.link_open = (tokens, i, options, env, self) => {
    tokens[i].attrSet('target', '_blank');
    tokens[i].attrSet('rel', 'noopener noreferrer nofollow');
    return self.renderToken(tokens, i, options);
  };
  md.renderer.rules.table_open = () => '<div class="table"><table>';
  md.renderer.rules.table_close = () => '</table></div>';
  return md;
}

export function renderMarkdown(text) {
  renderer ??= makeRenderer();
  return renderer.render(text);
}

// Splits "<think>…</think>answer". `open` says that the thought is still being written.
export function splitThinking(text) {
  const start = text.match(/^\s*<think(?:ing)?>/);
  const end = text.match(/<\/think(?:ing)?>/);
  if (start && !end) return { reasoning: text.slice(start[0].length).trimStart(), content: '', open: true };
  if (end && (start || !/<think(?:ing)?>/.test(text.slice(0, end.index)))) {
    const reasoning = text.slice(start ? start[0].length : 0, end.index).trim();
    return { reasoning, content: text.slice(end.index + end[0].length).trimStart(), open: false };
  }
  return { reasoning: '', content: text, open: false };
}
