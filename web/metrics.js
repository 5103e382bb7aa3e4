// The metrics tab: reads /metrics (Prometheus text, vLLM's names) and plots the last minutes.
import { fetchMetrics } from './api.js';

const kInterval = 1000;
const kHistory = 300;   // samples kept
const kWindow = 30;     // samples that latency quantiles look back

// name -> [{labels, value}]
export function parseMetrics(text) {
  const metrics = new Map();
  for (const line of text.split('\n')) {
    const match = line.match(/^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/);
    if (!match) continue;
    const labels = {};
    for (const [, key, value] of (match[2] ?? '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[key] = value;
    const value = match[3] === '+Inf' ? Infinity : Number(match[3]);
    if (!metrics.has(match[1])) metrics.set(match[1], []);
    metrics.get(match[1]).push({ labels, value });
  }
  return metrics;
}

function total(metrics, ...names) {
  for (const name of names) {
    const series = metrics.get(`vllm:${name}`);
    if (series) return series.reduce((sum, { value }) => sum + value, 0);
  }
  return null;
}

// Cumulative counts by upper bound, over all label sets.
function histogram(metrics, name) {
  const buckets = new Map();
  for (const { labels, value } of metrics.get(`vllm:${name}_bucket`) ?? []) {
    const bound = labels.le === '+Inf' ? Infinity : Number(labels.le);
    buckets.set(bound, (buckets.get(bound) ?? 0) + value);
  }
  return [...buckets].sort((a, b) => a[0] - b[0]);
}

// Quantile of the observations between two scrapes, interpolated inside its bucket; null without observations.
export function quantile(now, before, q) {
  const old = new Map(before);
  const counts = now.map(([bound, count]) => [bound, count - (old.get(bound) ?? 0)]);
  const all = counts.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  let lower = 0;
  let below = 0;
  for (const [bound, count] of counts) {
    if (count >= q * all) {
      if (bound === Infinity) return lower;
      return lower + (bound - lower) * ((q * all - below) / (count - below || 1));
    }
    lower = bound;
    below = count;
  }
  return lower;
}

function sample(metrics, time) {
  return {
    time,
    running: total(metrics, 'num_requests_running'),
    waiting: total(metrics, 'num_requests_waiting'),
    kv: total(metrics, 'kv_cache_usage_perc', 'gpu_cache_usage_perc'),
    promptTokens: total(metrics, 'prompt_tokens_total'),
    generationTokens: total(metrics, 'generation_tokens_total'),
    hits: total(metrics, 'prefix_cache_hits_total'),
    queries: total(metrics, 'prefix_cache_queries_total'),
    preemptions: total(metrics, 'num_preemptions_total'),
    finished: total(metrics, 'request_success_total'),
    ttft: histogram(metrics, 'time_to_first_token_seconds'),
    itl: histogram(metrics, metrics.has('vllm:inter_token_latency_seconds_bucket') ? 'inter_token_latency_seconds' : 'time_per_output_token_seconds'),
  };
}

const number = (value, digits = 0) => (value === null || value === undefined || Number.isNaN(value) ? '–'
  : value.toLocaleString('en', { maximumFractionDigits: digits, minimumFractionDigits: 0 }));
const milliseconds = (seconds) => (seconds === null ? '–' : seconds < 1 ? `${number(seconds * 1000, seconds < 0.01 ? 1 : 0)} ms` : `${number(seconds, 2)} s`);

const kPlots = [
  { title: 'Requests', unit: '', stepped: true, series: [['running', 'Running', 'c1'], ['waiting', 'Waiting', 'c2']] },
  { title: 'KV cache in use', unit: '%', max: 100, series: [['kvPercent', 'In use', 'c1', true]] },
  { title: 'Generated tokens per second', unit: '', series: [['generationRate', 'Generation', 'c1', true]] },
  { title: 'Prompt tokens per second', unit: '', series: [['promptRate', 'Prompt', 'c3', true]] },
  { title: 'Time to first token', unit: 'ms', series: [['ttft50', 'Median', 'c1'], ['ttft95', '95th percentile', 'c2']] },
  { title: 'Time between tokens', unit: 'ms', series: [['itl50', 'Median', 'c1'], ['itl95', '95th percentile', 'c2']] },
];

export class MetricsView {
  // `elements`: tiles, plots, state. `key()` gives the API key.
  constructor(elements, key) {
    Object.assign(this, elements);
    this.key = key;
    this.samples = [];
    this.points = [];
    this.charts = [];
    this.timer = null;
  }

  start() {
    if (this.timer) return;
    if (!this.charts.length) this.build();
    this.timer = setInterval(() => this.poll(), kInterval);
    this.poll();
  }
  stop() {
    clearInterval(this.timer);
    this.timer = null;
  }

  build() {
    for (const plot of kPlots) {
      const figure = document.createElement('figure');
      figure.innerHTML = '<figcaption><span></span><span class="legend"></span></figcaption><div class="canvas"><canvas role="img"></canvas></div>';
      figure.querySelector('span').textContent = plot.title + (plot.unit ? ` (${plot.unit})` : '');
      if (plot.series.length > 1) {
        figure.querySelector('.legend').innerHTML = plot.series.map(([, label, color]) => `<i class="${color}"></i>${label}`).join('');
      }
      const canvas = figure.querySelector('canvas');
      canvas.setAttribute('aria-label', plot.title);
      this.plots.append(figure);
      this.charts.push(this.makeChart(canvas, plot));
    }
    this.restyle();
  }

  makeChart(canvas, plot) {
    return new Chart(canvas, {
      type: 'line',
      data: { labels: [], datasets: plot.series.map(([field, label, , fill]) => ({ field, label, data: [], borderWidth: 2, pointRadius: 0, pointHitRadius: 12, cubicInterpolationMode: 'monotone', stepped: plot.stepped ? 'before' : false, fill: Boolean(fill), spanGaps: true })) },
      options: {
        animation: false,
        responsive: true,
        maintainAspectRatio: false,
        interaction: { mode: 'index', intersect: false },
        plugins: { legend: { display: false }, tooltip: { displayColors: plot.series.length > 1, callbacks: { label: (item) => `${item.dataset.label}: ${number(item.parsed.y, 2)} ${plot.unit}`.trim() } } },
        scales: {
          x: { ticks: { maxTicksLimit: 6, maxRotation: 0, autoSkip: true }, grid: { display: false } },
          y: { beginAtZero: true, suggestedMax: plot.max ?? 1, max: plot.max, ticks: { maxTicksLimit: 5, precision: plot.stepped ? 0 : undefined } },
        },
      },
    });
  }

  // Takes the colours of the current theme.
  restyle() {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    if (this.charts.length) Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    this.charts.forEach((chart, i) => {
      chart.data.datasets.forEach((dataset, k) => {
        const line = color(`--${kPlots[i].series[k][2]}`);
        dataset.borderColor = line;
        dataset.backgroundColor = `${line}22`;
      });
      for (const axis of Object.values(chart.options.scales)) {
        axis.ticks.color = color('--muted');
        axis.grid.color = color('--line');
        axis.grid.borderColor = color('--line');
      }
      chart.update('none');
    });
  }

  async poll() {
    if (this.polling || document.hidden) return;
    this.polling = true;
    try {
      this.add(sample(parseMetrics(await fetchMetrics(this.key())), Date.now()));
      this.state.textContent = `Updated ${new Date().toLocaleTimeString()}`;
      this.state.classList.remove('bad');
    } catch (error) {
      this.state.textContent = error.message;
      this.state.classList.add('bad');
    } finally {
      this.polling = false;
    }
  }

  add(now) {
    const last = this.samples.at(-1);
    // A counter that falls means that the server was started anew.
    if (last && now.generationTokens < last.generationTokens) this.samples = [];
    this.samples.push(now);
    if (this.samples.length > kHistory) this.samples.shift();
    const before = this.samples.at(-2);
    const rate = (field) => (before && now[field] !== null ? Math.max(0, (now[field] - before[field]) / ((now.time - before.time) / 1000)) : null);
    const reference = this.samples.at(-1 - Math.min(kWindow, this.samples.length - 1));
    const scaled = (histogramName, q) => {
      const value = quantile(now[histogramName], reference === now ? [] : reference[histogramName], q);
      return value === null ? null : value * 1000;
    };
    this.points.push({
      label: new Date(now.time).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false }),
      running: now.running, waiting: now.waiting,
      kvPercent: now.kv === null ? null : now.kv * 100,
      generationRate: rate('generationTokens'), promptRate: rate('promptTokens'),
      ttft50: scaled('ttft', 0.5), ttft95: scaled('ttft', 0.95), itl50: scaled('itl', 0.5), itl95: scaled('itl', 0.95),
    });
    if (this.points.length > kHistory) this.points.shift();
    this.draw(now);
  }

  draw(now) {
    const point = this.points.at(-1);
    const tiles = [
      ['Running', number(now.running)], ['Waiting', number(now.waiting)],
      ['KV cache', point.kvPercent === null ? '–' : `${number(point.kvPercent, 1)}%`],
      ['Generation', `${number(point.generationRate, point.generationRate < 100 ? 1 : 0)} tok/s`], ['Prompt', `${number(point.promptRate, point.promptRate < 100 ? 1 : 0)} tok/s`],
      ['First token (median)', milliseconds(quantile(now.ttft, [], 0.5))], ['Per token (median)', milliseconds(quantile(now.itl, [], 0.5))],
      ['Prefix cache hits', now.queries ? `${number((100 * now.hits) / now.queries, 1)}%` : '–'],
      ['Requests finished', number(now.finished)], ['Tokens generated', number(now.generationTokens)],
      ['Tokens read', number(now.promptTokens)], ['Preemptions', number(now.preemptions)],
    ];
    this.tiles.innerHTML = tiles.map(([label, value]) => `<div><dt>${label}</dt><dd>${value}</dd></div>`).join('');
    this.charts.forEach((chart) => {
      chart.data.labels = this.points.map((p) => p.label);
      for (const dataset of chart.data.datasets) dataset.data = this.points.map((p) => p[dataset.field]);
      chart.update('none');
    });
  }
}
