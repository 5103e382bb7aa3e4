// Puts the page together: conversations, tabs, theme, keys, and the watch on the server.
import { listModels } from './api.js';
import { ChatView, exportMarkdown, newConversation } from './chat.js';
import { fillIcons, icon } from './icons.js';
import { MetricsView } from './metrics.js';
import { describeSettings, SettingsDialog } from './settings.js';
import { SpeechInput } from './speech.js';
import { deleteConversation, loadConversations, readSetting, saveConversation, writeSetting } from './store.js';

const $ = (id) => document.getElementById(id);
const phone = matchMedia('(max-width: 760px)');

const state = {
  conversations: [],
  current: null,
  key: readSetting('key', ''),
  defaults: readSetting('defaults', {}),
  theme: null,  // null follows the system
  online: null,
  speechModels: new Set(),  // names of those that hear
};

// ---- small services

let toastTimer = null;
// Said to screen readers; also shown when `visible`.
function status(text, visible = false) {
  $('toast').textContent = text;
  $('toast').classList.toggle('shown', visible);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => $('toast').classList.remove('shown'), 4000);
}

function confirmDialog(text) {
  $('confirm-text').textContent = text;
  $('confirm').returnValue = 'no';
  $('confirm').showModal();
  return new Promise((resolve) => {
    $('confirm').addEventListener('close', () => resolve($('confirm').returnValue === 'yes'), { once: true });
  });
}

// ---- theme

const systemDark = matchMedia('(prefers-color-scheme: dark)');
function applyTheme() {
  const dark = state.theme ? state.theme === 'dark' : systemDark.matches;
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
  const name = { null: 'follows the system', light: 'light', dark: 'dark' }[state.theme];
  $('theme').innerHTML = icon({ null: 'auto', light: 'sun', dark: 'moon' }[state.theme]);
  $('theme').title = `Theme: ${name}`;
  $('theme').setAttribute('aria-label', `Theme: ${name}`);
  metrics.restyle();
}
function nextTheme() {
  const order = [null, systemDark.matches ? 'light' : 'dark', systemDark.matches ? 'dark' : 'light'];
  state.theme = order[(order.indexOf(state.theme) + 1) % 3];
  try {
    if (state.theme) localStorage.setItem('reft.theme', state.theme);
    else localStorage.removeItem('reft.theme');
  } catch { /* storage is off */ }
  applyTheme();
}

// ---- the server

let connectTimer = null;
async function connect() {
  clearTimeout(connectTimer);
  try {
    const models = await listModels(state.key);
    setOnline(true);
    const chosen = readSetting('model', '');
    $('model').replaceChildren(...models.map(({ id }) => new Option(id, id, false, id === chosen)));
    state.speechModels = new Set(models.filter((m) => m.architecture?.input_modalities?.includes('audio')).map(({ id }) => id));
    $('model').disabled = models.length < 2;
    drawComposer();
    $('model').title = $('model').value;
    document.title = models.length ? `${$('model').value} · reft` : 'reft';
    connectTimer = setTimeout(connect, 30000);
  } catch (error) {
    setOnline(false, error);
    connectTimer = setTimeout(connect, 3000);
  }
}
function setOnline(online, error) {
  state.online = online;
  $('status-dot').className = `dot ${online ? 'good' : 'bad'}`;
  $('banner').hidden = online;
  if (online) return;
  const unauthorized = error?.status === 401;
  $('banner').innerHTML = `${icon('warn')}<span></span>${unauthorized ? '<button class="text-button">Enter key</button>' : ''}`;
  $('banner').querySelector('span').textContent = unauthorized ? 'The server asks for an API key.'
    : error?.status ? error.message : 'The server cannot be reached. Trying again…';
  $('banner').querySelector('button')?.addEventListener('click', () => settings.open());
}

// ---- conversations

async function save(conversation) {
  if (!conversation.messages.length) return;
  if (conversation === state.current) writeSetting('current', conversation.id);
  if (!state.conversations.includes(conversation)) state.conversations.push(conversation);
  state.conversations.sort((a, b) => b.updated - a.updated);
  drawHistory();
  await store(conversation);
}

async function store(conversation) {
  try {
    await saveConversation(conversation);
  } catch (error) {
    status(`This chat could not be saved: ${error.message}`, true);
  }
}

function open(conversation) {
  state.current = conversation;
  chat.show(conversation);
  writeSetting('current', conversation.messages.length ? conversation.id : '');
  drawHistory();
  drawSettingsNote();
  closeSidebar();
}

function startNew() {
  open(newConversation(state.defaults));
  select('chat');
  $('prompt').focus();
}

function groupOf(time) {
  const day = new Date().setHours(0, 0, 0, 0);
  if (time >= day) return 'Today';
  if (time >= day - 86400000) return 'Yesterday';
  if (time >= day - 7 * 86400000) return 'Last 7 days';
  return new Date(time).toLocaleDateString(undefined, { month: 'long', year: 'numeric' });
}

function matches(conversation, words) {
  const text = [conversation.title, ...conversation.messages.map((m) => (m.role === 'user' ? m.content : m.versions[m.active].content))].join('\n').toLowerCase();
  return words.every((word) => text.includes(word));
}

function drawHistory() {
  const words = $('search').value.toLowerCase().split(/\s+/).filter(Boolean);
  const items = [];
  let group = '';
  for (const conversation of state.conversations.filter((c) => matches(c, words))) {
    if (groupOf(conversation.updated) !== group) {
      group = groupOf(conversation.updated);
      const heading = document.createElement('h2');
      heading.textContent = group;
      items.push(heading);
    }
    items.push(historyItem(conversation));
  }
  if (!items.length) {
    const nothing = document.createElement('p');
    nothing.className = 'muted';
    nothing.textContent = words.length ? 'No chat matches.' : 'No chats yet.';
    items.push(nothing);
  }
  $('history').replaceChildren(...items);
}

function historyItem(conversation) {
  const item = document.createElement('div');
  item.className = 'item';
  item.innerHTML = `<button type="button" class="open"></button><button type="button" class="icon-button small menu-button" aria-haspopup="menu" aria-label="More">${icon('more')}</button>`;
  const [openButton, menuButton] = item.children;
  openButton.textContent = conversation.title || 'New chat';
  openButton.title = conversation.title;
  if (conversation === state.current) {
    item.classList.add('current');
    openButton.setAttribute('aria-current', 'true');
  }
  openButton.addEventListener('click', () => { open(conversation); select('chat'); });
  openButton.addEventListener('dblclick', () => rename(item, conversation));
  menuButton.setAttribute('aria-label', `More for ${conversation.title || 'New chat'}`);
  menuButton.addEventListener('click', () => showMenu(menuButton, item, conversation));
  return item;
}

function showMenu(button, item, conversation) {
  closeMenu();
  const menu = document.createElement('div');
  menu.className = 'menu';
  menu.id = 'menu';
  menu.setAttribute('role', 'menu');
  const entries = [
    ['Rename', 'edit', () => rename(item, conversation)],
    ['Export as Markdown', 'download', () => download(`${fileName(conversation)}.md`, exportMarkdown(conversation), 'text/markdown')],
    ['Export as JSON', 'download', () => download(`${fileName(conversation)}.json`, JSON.stringify(conversation, null, 2), 'application/json')],
    ['Delete', 'trash', () => remove(conversation)],
  ];
  for (const [label, symbol, action] of entries) {
    const entry = document.createElement('button');
    entry.type = 'button';
    entry.setAttribute('role', 'menuitem');
    if (label === 'Delete') entry.className = 'danger';
    entry.innerHTML = `${icon(symbol)}<span>${label}</span>`;
    entry.addEventListener('click', () => { closeMenu(); action(); });
    menu.append(entry);
  }
  menu.addEventListener('keydown', (event) => {
    const list = [...menu.children];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      list[(list.indexOf(document.activeElement) + step + list.length) % list.length].focus();
    }
    if (event.key === 'Escape' || event.key === 'Tab') { event.stopPropagation(); closeMenu(); button.focus(); }
  });
  document.body.append(menu);
  const box = button.getBoundingClientRect();
  menu.style.left = `${Math.min(box.left, innerWidth - menu.offsetWidth - 8)}px`;
  menu.style.top = `${Math.min(box.bottom + 4, innerHeight - menu.offsetHeight - 8)}px`;
  menu.firstChild.focus();
  setTimeout(() => document.addEventListener('click', closeMenu, { once: true }));
}
function closeMenu() { $('menu')?.remove(); }

function rename(item, conversation) {
  const input = document.createElement('input');
  input.className = 'rename';
  input.value = conversation.title;
  input.setAttribute('aria-label', 'Name of the chat');
  item.replaceChildren(input);
  let done = false;
  const finish = async (keep) => {
    if (done) return;
    done = true;
    if (keep && input.value.trim()) {
      conversation.title = input.value.trim();
      await store(conversation);  // the list shows the new name once it is kept
    }
    drawHistory();
  };
  input.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') finish(true);
    if (event.key === 'Escape') { event.stopPropagation(); finish(false); }
  });
  input.addEventListener('blur', () => finish(true));
  input.focus();
  input.select();
}

async function remove(conversation) {
  if (!await confirmDialog(`Delete “${conversation.title || 'New chat'}”? This cannot be undone.`)) return;
  if (chat.running?.conversation === conversation) chat.stop();
  state.conversations = state.conversations.filter((c) => c !== conversation);
  await deleteConversation(conversation.id);
  if (state.current === conversation) startNew();
  drawHistory();
}

const fileName = (conversation) => (conversation.title || 'chat').toLowerCase().replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-|-$/g, '').slice(0, 60) || 'chat';

function download(name, text, type) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- views

function select(view) {
  for (const name of ['chat', 'metrics']) {
    const chosen = name === view;
    $(`view-${name}`).hidden = !chosen;
    $(`tab-${name}`).setAttribute('aria-selected', String(chosen));
    $(`tab-${name}`).tabIndex = chosen ? 0 : -1;
  }
  if (view === 'metrics') metrics.start();
  else metrics.stop();
  const hash = view === 'metrics' ? '#metrics' : ' ';
  history.replaceState(null, '', hash === ' ' ? location.pathname + location.search : hash);
}

function openSidebar() {
  document.body.classList.add('sidebar-open');
  $('scrim').hidden = false;
  $('open-sidebar').setAttribute('aria-expanded', 'true');
  $('close-sidebar').focus();
}
function closeSidebar() {
  if (!document.body.classList.contains('sidebar-open')) return;
  document.body.classList.remove('sidebar-open');
  $('scrim').hidden = true;
  $('open-sidebar').setAttribute('aria-expanded', 'false');
}
function toggleSidebar() {
  if (phone.matches) {
    openSidebar();
  } else {
    const hidden = document.body.classList.toggle('sidebar-hidden');
    writeSetting('sidebarHidden', hidden);
  }
}

function drawSettingsNote() {
  $('settings-note').textContent = describeSettings(state.current.settings);
}

// ---- composer

function fitPrompt() {
  const prompt = $('prompt');
  prompt.style.height = 'auto';
  prompt.style.height = `${Math.min(prompt.scrollHeight, innerHeight * 0.4)}px`;
  $('send').disabled = hears() || !prompt.value.trim();
}

// A speech model takes recordings; the text then is a hint to it.
const hears = () => state.speechModels.has($('model').value);
function drawComposer() {
  speech.show(hears());
  $('prompt').placeholder = hears() ? 'Choose a sound file or record one; names and spelling to expect go here' : 'Ask anything';
  document.body.classList.toggle('speech', hears());
  fitPrompt();
}

function submit() {
  if (hears()) return;
  const text = $('prompt').value;
  if (!text.trim() || chat.busy) return;
  $('prompt').value = '';
  fitPrompt();
  chat.send(text);
}

function onPromptKey(event) {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && !(phone.matches && 'ontouchstart' in window)) {
    event.preventDefault();
    submit();
  }
  if (event.key === 'ArrowUp' && !event.target.value && !chat.busy && state.current.messages.length) {
    event.preventDefault();
    chat.editLast();
  }
}

function onKey(event) {
  const command = event.ctrlKey || event.metaKey;
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (document.querySelector('dialog[open]')) return;
  if (event.key === 'Escape') {
    if (document.body.classList.contains('sidebar-open')) closeSidebar();
    else chat.stop();
  } else if (command && event.shiftKey && event.key.toLowerCase() === 'o') {
    event.preventDefault();
    startNew();
  } else if (command && event.key.toLowerCase() === 'k') {
    event.preventDefault();
    if (phone.matches) openSidebar();
    document.body.classList.remove('sidebar-hidden');
    $('search').focus();
  } else if (command && event.key === ',') {
    event.preventDefault();
    settings.open();
  } else if (event.key === '/' && !typing && !command) {
    event.preventDefault();
    select('chat');
    $('prompt').focus();
  }
}

// ---- start

const chat = new ChatView(
  { list: $('messages'), scroller: $('scroller'), toBottom: $('to-bottom'), send_button: $('send'), stop_button: $('stop') },
  {
    model: () => $('model').value,
    key: () => state.key,
    saved: save,
    status,
    error: (error) => { if (error.status === 0 || error.status === 401) connect(); },
  },
);
const speech = new SpeechInput({ upload: $('upload'), record: $('record'), field: $('sound') }, {
  send: (file) => chat.transcribe(file, { prompt: $('prompt').value.trim() }),
  error: (text) => status(text, true),
});
const metrics = new MetricsView({ tiles: $('tiles'), plots: $('plots'), state: $('metrics-state') }, () => state.key);
const settings = new SettingsDialog($('settings'), {
  settings: () => state.current.settings,
  key: () => state.key,
  setKey: (key) => {
    if (key === state.key) return;
    state.key = key;
    writeSetting('key', key);
    connect();
  },
  changed: (values) => {
    state.current.settings = values;
    state.defaults = structuredClone(values);
    writeSetting('defaults', values);
    drawSettingsNote();
    save(state.current);
  },
});

function listen() {
  $('new-chat').addEventListener('click', startNew);
  $('open-sidebar').addEventListener('click', toggleSidebar);
  $('close-sidebar').addEventListener('click', () => { closeSidebar(); $('open-sidebar').focus(); });
  $('scrim').addEventListener('click', closeSidebar);
  $('search').addEventListener('input', drawHistory);
  $('theme').addEventListener('click', nextTheme);
  $('open-settings').addEventListener('click', () => settings.open());
  $('model').addEventListener('change', () => { writeSetting('model', $('model').value); $('model').title = $('model').value; drawComposer(); });
  $('composer').addEventListener('submit', (event) => { event.preventDefault(); submit(); });
  $('stop').addEventListener('click', () => chat.stop());
  $('prompt').addEventListener('input', fitPrompt);
  $('prompt').addEventListener('keydown', onPromptKey);
  for (const tab of document.querySelectorAll('[role=tab]')) {
    tab.addEventListener('click', () => select(tab.id.slice(4)));
    tab.addEventListener('keydown', (event) => {
      if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return;
      const other = tab.id === 'tab-chat' ? 'metrics' : 'chat';
      select(other);
      $(`tab-${other}`).focus();
    });
  }
  document.addEventListener('keydown', onKey);
  systemDark.addEventListener('change', applyTheme);
  addEventListener('resize', fitPrompt);
}

async function start() {
  fillIcons(document);
  try { state.theme = localStorage.getItem('reft.theme'); } catch { /* storage is off */ }
  document.body.classList.toggle('sidebar-hidden', readSetting('sidebarHidden', false));
  applyTheme();
  listen();
  connect();
  state.conversations = await loadConversations();
  const last = state.conversations.find(({ id }) => id === readSetting('current', ''));
  open(last ?? newConversation(state.defaults));
  select(location.hash === '#metrics' ? 'metrics' : 'chat');
  if (!phone.matches) $('prompt').focus();
  fitPrompt();
  document.documentElement.dataset.ready = 'true';
}

start();
