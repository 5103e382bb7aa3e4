// The settings dialog: sampling of the current chat, the API key, the keyboard's list.
const kFields = [
  ['temperature', 'Temperature', 0, 2, 0.05, 'Higher is more varied, 0 always takes the likeliest'],
  ['top_p', 'Top p', 0.01, 1, 0.01, 'Keeps the likeliest tokens up to this probability'],
  ['top_k', 'Top k', 0, 100000, 1, 'Keeps this many tokens, 0 keeps all'],
  ['min_p', 'Min p', 0, 1, 0.01, 'Drops tokens less likely than this share of the best'],
  ['max_tokens', 'Max tokens', 1, 1000000, 1, 'The longest answer'],
  ['seed', 'Seed', 0, 9007199254740991, 1, 'The same seed gives the same answer'],
  ['repetition_penalty', 'Repetition penalty', 0.01, 2, 0.01, '1 is none'],
  ['presence_penalty', 'Presence penalty', -2, 2, 0.05, '0 is none'],
  ['frequency_penalty', 'Frequency penalty', -2, 2, 0.05, '0 is none'],
];

const kKeys = [
  ['Send', 'Enter'], ['New line', 'Shift+Enter'], ['Stop the answer', 'Esc'], ['New chat', 'Ctrl+Shift+O'],
  ['Search chats', 'Ctrl+K'], ['Write a message', '/'], ['Edit your last message', '↑ in an empty field'], ['Settings', 'Ctrl+,'],
];

export class SettingsDialog {
  // `host`: settings() of the current chat, changed(settings), key(), setKey(text).
  constructor(dialog, host) {
    this.dialog = dialog;
    this.host = host;
    const byId = (id) => dialog.querySelector(`#${id}`);
    this.system = byId('s-system');
    this.stop = byId('s-stop');
    this.key = byId('s-key');
    this.thinking = byId('s-thinking');
    this.inputs = new Map();
    for (const [name, label, min, max, step, help] of kFields) {
      const field = document.createElement('label');
      field.title = help;
      field.innerHTML = `<span>${label}</span><input type="number" inputmode="decimal" min="${min}" max="${max}" step="${step === 1 ? 1 : 'any'}" placeholder="Default" aria-description="${help}">`;
      byId('fields').append(field);
      this.inputs.set(name, field.querySelector('input'));
    }
    byId('keys').innerHTML = kKeys.map(([what, keys]) => `<div><dt>${what}</dt><dd><kbd>${keys}</kbd></dd></div>`).join('');
    byId('reset-settings').addEventListener('click', () => {
      this.fill({});
      this.changed();
    });
    dialog.addEventListener('input', () => this.changed());
    dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
  }

  open() {
    this.fill(this.host.settings());
    this.key.value = this.host.key();
    this.dialog.showModal();
  }

  fill(settings) {
    this.system.value = settings.system ?? '';
    this.stop.value = settings.stop ?? '';
    for (const [name, input] of this.inputs) input.value = settings[name] ?? '';
    for (const radio of this.thinking.querySelectorAll('input')) radio.checked = radio.value === (settings.thinking ?? '');
  }

  changed() {
    const settings = { system: this.system.value, stop: this.stop.value, thinking: this.thinking.querySelector(':checked')?.value ?? '' };
    for (const [name, input] of this.inputs) {
      input.setAttribute('aria-invalid', String(!input.validity.valid));
      if (input.value !== '' && input.validity.valid) settings[name] = Number(input.value);
    }
    this.host.setKey(this.key.value.trim());
    this.host.changed(settings);
  }
}

// "temperature 0.7 · thinking off": what of a chat's settings differs from the server's defaults.
export function describeSettings(settings) {
  const parts = [];
  if (settings.system?.trim()) parts.push('system prompt');
  for (const [name, label] of kFields) {
    if (Number.isFinite(settings[name])) parts.push(`${label.toLowerCase()} ${settings[name]}`);
  }
  if (settings.thinking) parts.push(`thinking ${settings.thinking}`);
  if (settings.stop) parts.push('stop sequences');
  return parts.join(' · ');
}
