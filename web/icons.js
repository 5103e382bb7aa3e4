// Inline icons, 24 units wide, drawn with the text's colour.
const paths = {
  plus: 'M12 5v14M5 12h14',
  close: 'M6 6l12 12M18 6L6 18',
  menu: 'M4 7h16M4 12h16M4 17h16',
  search: 'M11 4a7 7 0 1 0 0 14a7 7 0 0 0 0-14zM16 16l4.5 4.5',
  sliders: 'M4 8h9M19 8h1M4 16h3M13 16h7M16 5.5v5M10 13.5v5',
  sun: 'M12 8a4 4 0 1 0 0 8a4 4 0 0 0 0-8zM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4',
  moon: 'M20 14.5A8.5 8.5 0 0 1 9.5 4A8.5 8.5 0 1 0 20 14.5z',
  send: 'M12 19V5M6 11l6-6l6 6',
  down: 'M12 5v14M6 13l6 6l6-6',
  copy: 'M9 9h10v11H9zM15 9V4H5v11h4',
  check: 'M5 12.5l4.5 4.5L19 7.5',
  refresh: 'M19.5 12a7.5 7.5 0 1 1-2.2-5.3M19.5 3.5v4h-4',
  edit: 'M4.5 19.5l1-4L16 5l3 3L8.5 18.5zM14 7l3 3',
  trash: 'M5 7h14M10 7V4.5h4V7M7 7l1 13h8l1-13M10.5 11v5.5M13.5 11v5.5',
  download: 'M12 4v11M7 10.5l5 5l5-5M5 20h14',
  more: 'M6 12h.01M12 12h.01M18 12h.01',
  left: 'M14.5 6l-6 6l6 6',
  right: 'M9.5 6l6 6l-6 6',
  forward: 'M6 5.5l9 6.5l-9 6.5zM18.5 5.5v13',
  thought: 'M9.5 18.5h5M10 21.5h4M12 2.5a6.5 6.5 0 0 0-3.5 12c.7.5 1 1.2 1 2v.5h5v-.5c0-.8.3-1.5 1-2a6.5 6.5 0 0 0-3.5-12z',
  attach: 'M12 16V4M7.5 8.5l4.5-4.5l4.5 4.5M4.5 15v5h15v-5',
  microphone: 'M12 3a3 3 0 0 0-3 3v5.5a3 3 0 0 0 6 0V6a3 3 0 0 0-3-3zM5.5 11.5a6.5 6.5 0 0 0 13 0M12 18v3.5',
  warn: 'M12 4L2.5 20h19zM12 10v4.5M12 17.5h.01',
};

export function icon(name) {
  if (name === 'auto') return '<svg viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="12" r="8.5" fill="none" stroke="currentColor" stroke-width="1.8"/><path d="M12 3.5a8.5 8.5 0 0 1 0 17z" fill="currentColor"/></svg>';
  if (name === 'stop') return '<svg viewBox="0 0 24 24" aria-hidden="true"><rect x="7" y="7" width="10" height="10" rx="2" fill="currentColor"/></svg>';
  const width = name === 'more' ? 3 : 1.8;
  return `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${paths[name]}" fill="none" stroke="currentColor" stroke-width="${width}" stroke-linecap="round" stroke-linejoin="round"/></svg>`;
}

// Fills every [data-icon] below `root`.
export function fillIcons(root) {
  for (const element of root.querySelectorAll('[data-icon]')) {
    if (!element.firstElementChild) element.insertAdjacentHTML('afterbegin', icon(element.dataset.icon));
  }
}
