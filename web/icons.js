// Inline icons, 24 units wide, drawn with the text's colour.
const paths = {
  plus: 'M12 5v14M5 12h14',
  close: 'M6 6l12 12M18 6L6 18',
  menu: 'M4 7h16M4 12h16M4 17h16',
  search: 'M11 4a7 7 0 1 0 0 14a7 7 0 0 0 0-14zM16 16l4.5 4.5',
  sliders: 'M4 8h9M19 8h1M4 16h3M13 16h7M16 5.5v5M10 13.500v5',
  sun: 'M12 8a4 4 0 1 0 0 8a4 4 0 0 0 0-8zM12 2.500v2M12 19.500v2M2.500 12h2M19.500 12h2M5.300 5.300l1.400 1.400M17.300 17.300l1.400 1.400M5.300 18.700l1.400-1.400M17.300 6.700l1.400-1.400',
  moon: 'M20 14.500A8.500 8.500 0 0 1 9.500 4A8.500 8.500 0 1 0 20 14.500z',
  auto: 'M12 3.500a8.500 8.500 0 1 0 0 17a8.500 8.500 0 0 0 0-17zM12 3.500v17M12 7l6 -.5M12 11l8.300 0M12 15l8 0M12 19l4 0',
  send: 'M12 19V5M6 11l6-6l6 6',
  down: 'M12 5v14M6 13l6 6l6-6',
  copy: 'M9 9h10v11H9zM15 9V4H5v11h4',
  check: 'M5 12.500l4.500 4.500L19 7.500',
  refresh: 'M19.500 12a7.500 7.500 0 1 1-2.200-5.300M19.500 3.500v4h-4',
  edit: 'M4.500 19.500l1-4L16 5l3 3L8.500 18.500zM14 7l3 3',
  trash: 'M5 7h14M10 7V4.500h4V7M7 7l1 13h8l1-13M10.500 11v5.500M13.500 11v5.500',
  download: 'M12 4v11M7 10.500l5 5l5-5M5 20h14',
  more: 'M6 12h.01M12 12h.01M18 12h.01',
  left: 'M14.500 6l-6 6l6 6',
  right: 'M9.500 6l6 6l-6 6',
  forward: 'M6 5.500l9 6.500l-9 6.500zM18.500 5.500v13',
  thought: 'M9.500 18.500h5M10 21.500h4M12 2.500a6.500 6.500 0 0 0-3.500 12c.7.500 1 1.200 1 2v.5h5v-.5c0-.8.300-1.500 1-2a6.500 6.500 0 0 0-3.500-12z',
  warn: 'M12 4L2.500 20h19zM12 10v4.500M12 17.500h.01',
};

export function icon(name) {
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
