// One conversation on the page: what is shown, and what is asked of the server.
import { ApiError, streamChat, streamTranscription } from './api.js';
import { icon } from './icons.js';
import { renderMarkdown, splitThinking } from './markdown.js';

const kSuggestions = [
  ['Explain a concept', 'Explain how a hash map works, with a small example.'],
  ['Write code', 'Write a Python function that merges two sorted lists, with a docstring.'],
  ['Do some maths', 'Derive the quadratic formula step by step.'],
  ['Draft a text', 'Draft a short, friendly e-mail that asks to move a meeting to Thursday.'],
];

const newId = () => crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(36).slice(2)}`;

export function newConversation(settings) {
  return { id: newId(), title: '', created: Date.now(), updated: Date.now(), settings: structuredClone(settings), messages: [] };
}

// The active version of an assistant's message.
const active = (message) => message.versions[message.active];

function textParts(version) {
  const split = splitThinking(version.content);
  return {
    reasoning: [version.reasoning, split.reasoning].filter(Boolean).join('\n\n'),
    content: split.content,
    thinking: split.open || (version.reasoning && !version.content),
  };
}

// What the server is sent: thoughts of earlier turns stay out.
function requestMessages(conversation, count) {
  const messages = conversation.messages.slice(0, count).map((message) => (message.role === 'user'
    ? { role: 'user', content: message.content }
    : { role: 'assistant', content: textParts(active(message)).content }));
  const system = conversation.settings.system?.trim();
  return system ? [{ role: 'system', content: system }, ...messages] : messages;
}

function requestBody(settings, model) {
  const body = { model };
  for (const name of ['temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed', 'repetition_penalty', 'presence_penalty', 'frequency_penalty']) {
    if (Number.isFinite(settings[name])) body[name] = settings[name];
  }
  const stop = (settings.stop ?? '').split('\n').filter((line) => line !== '');
  if (stop.length) body.stop = stop;
  if (settings.thinking) body.chat_template_kwargs = { enable_thinking: settings.thinking === 'on' };
  return body;
}

function statsText(stats) {
  if (!stats) return '';
  const parts = [];
  if (stats.rate && stats.tokens > 3) parts.push(`${stats.rate < 10 ? stats.rate.toFixed(1) : Math.round(stats.rate)} tokens/s`);
  if (stats.ttft !== undefined) parts.push(`first token ${stats.ttft < 1000 ? `${Math.round(stats.ttft)} ms` : `${(stats.ttft / 1000).toFixed(2)} s`}`);
  if (stats.tokens) parts.push(`${stats.tokens} token${stats.tokens === 1 ? '' : 's'}`);
  if (stats.finish === 'length') parts.push('cut off at the token limit');
  if (stats.finish === 'stopped') parts.push('stopped');
  return parts.join(' · ');
}

export class ChatView {
  // `host`: model(), key(), saved(conversation), status(text), error(ApiError).
  constructor(elements, host) {
    Object.assign(this, elements);
    this.host = host;
    this.conversation = null;
    this.running = null;  // { abort, conversation, message }
    this.follow = true;
    this.scroller.addEventListener('scroll', () => this.onScroll(), { passive: true });
    this.toBottom.addEventListener('click', () => this.scrollDown(true));
    this.list.addEventListener('click', (event) => this.onClick(event));
  }

  show(conversation) {
    this.conversation = conversation;
    this.render();
    this.follow = true;
    this.scrollDown();
  }

  get busy() { return this.running !== null; }

  // ---- drawing

  render() {
    this.list.replaceChildren();
    this.composerState();
    if (!this.conversation.messages.length) {
      this.renderEmpty();
      return;
    }
    this.conversation.messages.forEach((message, index) => this.list.append(this.messageElement(message, index)));
  }

  renderEmpty() {
    const welcome = document.createElement('div');
    welcome.className = 'welcome';
    welcome.innerHTML = '<h1>What can I help with?</h1><div class="suggestions"></div>';
    for (const [title, text] of kSuggestions) {
      const button = document.createElement('button');
      button.type = 'button';
      button.innerHTML = '<strong></strong><span></span>';
      button.firstChild.textContent = title;
      button.lastChild.textContent = text;
      button.addEventListener('click', () => this.send(text));
      welcome.querySelector('.suggestions').append(button);
    }
    this.list.append(welcome);
  }

  messageElement(message, index) {
    const element = document.createElement('article');
    element.className = `message ${message.role}`;
    element.dataset.index = index;
    element.setAttribute('aria-label', message.role === 'user' ? 'You' : 'Answer');
    if (message.role === 'user') this.fillUser(element, message);
    else this.fillAssistant(element, message);
    return element;
  }

  fillUser(element, message) {
    element.innerHTML = `<div class="bubble"></div><div class="tools">${message.recording ? '' : this.button('edit', 'edit', 'Edit and resend')}${this.button('copy', 'copy', 'Copy')}</div>`;
    element.firstChild.textContent = message.content;
  }

  fillAssistant(element, message) {
    element.innerHTML = '<details class="thought" hidden><summary></summary><div class="prose"></div></details>'
      + '<div class="prose answer"></div><div class="failure" hidden></div><div class="tools"></div>';
    this.updateAssistant(element, message);
  }

  updateAssistant(element, message) {
    const version = active(message);
    const { reasoning, content, thinking } = textParts(version);
    const live = this.running?.message === message;
    const thought = element.querySelector('.thought');
    thought.hidden = !reasoning && !(thinking && live);
    if (!thought.hidden) {
      const seconds = version.thoughtMs >= 100 ? ` for ${(version.thoughtMs / 1000).toFixed(version.thoughtMs < 9950 ? 1 : 0)} s` : '';
      thought.querySelector('summary').innerHTML = `${icon('thought')}<span>${thinking && live ? 'Thinking…' : `Thought${seconds}`}</span>`;
      thought.classList.toggle('live', Boolean(thinking && live));
      this.setHtml(thought.querySelector('.prose'), renderMarkdown(reasoning));
    }
    const answer = element.querySelector('.answer');
    this.setHtml(answer, content ? renderMarkdown(content) : '');
    answer.classList.toggle('live', live && !thinking);
    const failure = element.querySelector('.failure');
    failure.hidden = !version.error;
    if (version.error) {
      failure.innerHTML = `${icon('warn')}<span></span>`;
      failure.lastChild.textContent = version.error;
    }
    element.setAttribute('aria-busy', String(live));
    this.updateTools(element, message, live);
  }

  updateTools(element, message, live) {
    const version = active(message);
    const count = message.versions.length;
    const pager = count > 1 ? `<span class="pager">${this.button('previous', 'left', 'Previous version', message.active === 0)}`
      + `<span>${message.active + 1} / ${count}</span>${this.button('next', 'right', 'Next version', message.active === count - 1)}</span>` : '';
    const last = message === this.conversation.messages.at(-1);
    const cut = last && !message.recording && version.content && (version.error || ['length', 'stopped'].includes(version.stats?.finish));
    const tools = live ? '' : `${pager}${this.button('copy', 'copy', 'Copy')}${message.recording ? '' : this.button('regenerate', 'refresh', 'Regenerate')}`
      + (cut ? this.button('continue', 'forward', 'Continue this answer') : '');
    this.setHtml(element.querySelector('.tools'), `${tools}<span class="stats">${statsText(version.stats)}</span>`);
  }

  button(action, symbol, label, disabled = false) {
    return `<button type="button" class="icon-button small" data-action="${action}" aria-label="${label}" title="${label}"${disabled ? ' disabled' : ''}>${icon(symbol)}</button>`;
  }

  // Replaces only what changed at the end, so that a selection or an opened code block above survives the stream.
  setHtml(target, html) {
    if (target.dataset.length === String(html.length) && target.lastHtml === html) return;
    target.lastHtml = html;
    target.dataset.length = html.length;
    const template = document.createElement('template');
    template.innerHTML = html;
    const fresh = [...template.content.childNodes];
    const old = [...target.childNodes];
    let same = 0;
    while (same < old.length && same < fresh.length && old[same].isEqualNode(fresh[same])) ++same;
    for (const node of old.slice(same)) node.remove();
    target.append(...fresh.slice(same));
  }

  elementOf(message) {
    return this.list.querySelector(`[data-index="${this.conversation.messages.indexOf(message)}"]`);
  }

  composerState() {
    this.send_button.hidden = this.busy;
    this.stop_button.hidden = !this.busy;
  }

  // ---- scrolling

  onScroll() {
    const gap = this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight;
    this.follow = gap < 60;
    this.toBottom.hidden = gap < 200;
  }
  scrollDown(smooth = false) {
    this.scroller.scrollTo({ top: this.scroller.scrollHeight, behavior: smooth ? 'smooth' : 'instant' });
  }

  // ---- actions

  onClick(event) {
    const copy = event.target.closest('.copy-code');
    if (copy) {
      this.copyText(copy.closest('.code').querySelector('code').textContent, copy);
      return;
    }
    const button = event.target.closest('[data-action]');
    if (!button) return;
    const index = Number(button.closest('.message').dataset.index);
    const message = this.conversation.messages[index];
    switch (button.dataset.action) {
      case 'copy':
        this.copyText(message.role === 'user' ? message.content : textParts(active(message)).content, button);
        break;
      case 'edit':
        this.edit(index);
        break;
      case 'regenerate':
        this.regenerate(index);
        break;
      case 'continue':
        this.continueAnswer(message);
        break;
      default:
        message.active += button.dataset.action === 'next' ? 1 : -1;
        this.updateAssistant(this.elementOf(message), message);
        this.host.saved(this.conversation);
    }
  }

  async copyText(text, button) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // no clipboard without https: the old way
      const area = document.createElement('textarea');
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand('copy');
      area.remove();
    }
    const before = button.innerHTML;
    button.innerHTML = icon('check') + (button.querySelector('span') ? '<span>Copied</span>' : '');
    this.host.status('Copied');
    setTimeout(() => { button.innerHTML = before; }, 1500);
  }

  edit(index) {
    if (this.busy) return;
    const element = this.list.querySelector(`[data-index="${index}"]`);
    const message = this.conversation.messages[index];
    element.classList.add('editing');
    element.innerHTML = '<form class="editor"><textarea rows="1" aria-label="Edit your message"></textarea><div><button type="button" class="text-button">Cancel</button><button class="primary">Send</button></div></form>';
    const area = element.querySelector('textarea');
    const close = () => {
      element.classList.remove('editing');
      this.fillUser(element, message);
    };
    const submit = () => {
      const text = area.value.trim();
      if (!text) return;
      this.conversation.messages.length = index;
      this.render();
      this.send(text);
    };
    area.value = message.content;
    const fit = () => { area.style.height = 'auto'; area.style.height = `${area.scrollHeight + 2}px`; };
    area.addEventListener('input', fit);
    area.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') { event.stopPropagation(); close(); }
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
    });
    element.querySelector('.text-button').addEventListener('click', close);
    element.querySelector('form').addEventListener('submit', (event) => { event.preventDefault(); submit(); });
    fit();
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  editLast() {
    const index = this.conversation.messages.findLastIndex((message) => message.role === 'user' && !message.recording);
    if (index >= 0) this.edit(index);
  }

  async send(text) {
    if (this.busy || !text.trim()) return;
    const conversation = this.conversation;
    conversation.messages.push({ role: 'user', content: text.trim() });
    if (!conversation.title) conversation.title = text.trim().replace(/\s+/g, ' ').slice(0, 80);
    const message = { role: 'assistant', versions: [{ content: '', reasoning: '' }], active: 0 };
    conversation.messages.push(message);
    await this.generate(conversation, message);
  }

  async regenerate(index) {
    if (this.busy) return;
    const message = this.conversation.messages[index];
    this.conversation.messages.length = index + 1;
    message.versions = message.versions.filter((version) => version.content || version.reasoning);
    message.versions.push({ content: '', reasoning: '' });
    message.active = message.versions.length - 1;
    await this.generate(this.conversation, message);
  }

  async continueAnswer(message) {
    if (this.busy) return;
    await this.generate(this.conversation, message, true);
  }

  // Has a recording written down. `fields`: see streamTranscription.
  async transcribe(file, fields) {
    if (this.busy) return;
    const conversation = this.conversation;
    conversation.messages.push({ role: 'user', content: file.name, recording: true });
    if (!conversation.title) conversation.title = file.name.slice(0, 80);
    const message = { role: 'assistant', versions: [{ content: '', reasoning: '' }], active: 0, recording: true };
    conversation.messages.push(message);
    const all = { model: this.host.model(), ...fields };
    await this.run(conversation, message, all.model, async function* chunks(key, signal) {
      for await (const content of streamTranscription(file, all, key, signal)) yield { choices: [{ delta: { content } }] };
    });
  }

  stop() { this.running?.abort.abort(); }

  async generate(conversation, message, continues = false) {
    const index = conversation.messages.indexOf(message);
    const body = { ...requestBody(conversation.settings, this.host.model()), messages: requestMessages(conversation, continues ? index + 1 : index) };
    if (continues) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
    await this.run(conversation, message, body.model, (key, signal) => streamChat(body, key, signal));
  }

  // Fills the message's active version with the chunks of `stream(key, signal)`.
  async run(conversation, message, model, stream) {
    const version = active(message);
    const abort = new AbortController();
    this.running = { abort, conversation, message };
    delete version.error;
    this.render();
    this.follow = true;
    this.scrollDown();
    conversation.updated = Date.now();
    this.host.saved(conversation);
    version.model = model;
    const clock = new AnswerClock();
    try {
      for await (const chunk of stream(this.host.key(), abort.signal)) {
        this.addChunk(version, chunk, clock);
        version.stats = clock.stats();
        this.drawSoon(conversation, message);
      }
    } catch (error) {
      if (error.name === 'AbortError') {
        clock.finish = 'stopped';
      } else {
        version.error = error instanceof ApiError ? error.message : `The answer could not be read: ${error.message}`;
        this.host.error(error);
      }
    }
    version.stats = clock.stats();
    this.running = null;
    conversation.updated = Date.now();
    this.host.saved(conversation);
    clearTimeout(this.drawTimer);
    this.drawTimer = null;
    if (this.conversation === conversation) {
      this.draw(message);
      this.composerState();
    }
    this.host.status(version.error ? `Error: ${version.error}` : 'The answer is complete');
  }

  addChunk(version, chunk, clock) {
    const choice = chunk.choices?.[0];
    const delta = choice?.delta ?? {};
    const reasoning = delta.reasoning_content ?? delta.reasoning ?? '';
    if (reasoning || delta.content) clock.token();
    version.reasoning += reasoning;
    version.content += delta.content ?? '';
    const parts = textParts(version);
    if (parts.reasoning && !parts.thinking && !version.thoughtMs) version.thoughtMs = clock.sinceFirst();
    if (choice?.finish_reason) clock.finish = choice.finish_reason;
    if (chunk.usage) clock.tokens = chunk.usage.completion_tokens;
  }

  // Draws at most every 40 ms, and less often when a long answer takes long to draw.
  drawSoon(conversation, message) {
    if (this.drawTimer || this.conversation !== conversation) return;
    this.drawTimer = setTimeout(() => {
      this.drawTimer = null;
      if (this.conversation !== conversation) return;
      const start = performance.now();
      this.draw(message);
      this.drawCost = performance.now() - start;
    }, Math.max(40, 3 * (this.drawCost ?? 0)));
  }

  draw(message) {
    const element = this.elementOf(message);
    if (!element) return;
    this.updateAssistant(element, message);
    if (this.follow) this.scrollDown();
    else this.onScroll();
  }
}

// Measures one answer: time to the first token, and tokens per second after it.
class AnswerClock {
  constructor() {
    this.start = performance.now();
    this.first = 0;
    this.last = 0;
    this.chunks = 0;
    this.tokens = 0;
    this.finish = '';
  }
  token() {
    this.last = performance.now();
    if (!this.first) this.first = this.last;
    ++this.chunks;
  }
  sinceFirst() { return this.last - this.first; }
  stats() {
    const tokens = this.tokens || this.chunks;
    const seconds = (this.last - this.first) / 1000;
    return {
      tokens,
      ttft: this.first ? this.first - this.start : undefined,
      rate: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : 0,
      finish: this.finish,
    };
  }
}

export function exportMarkdown(conversation) {
  const lines = [`# ${conversation.title || 'Chat'}`, ''];
  if (conversation.settings.system) lines.push('**System**', '', conversation.settings.system, '');
  for (const message of conversation.messages) {
    lines.push(message.role === 'user' ? '**You**' : '**Assistant**', '');
    lines.push(message.role === 'user' ? message.content : textParts(active(message)).content, '');
  }
  return lines.join('\n');
}
