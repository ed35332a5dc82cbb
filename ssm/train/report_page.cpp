#include "ssm/train/report_page.h"

namespace ssm::train {

const std::string_view kReportPage = R"page(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Training report</title>
<style>
:root {
  --page: #f6f6f3; --card: #ffffff; --ink: #1c1d20; --soft: #62656c; --faint: #8b8e95; --line: #e3e3de;
  --train: #2563b8; --validation: #c2500f; --other: #0f7b6c; --shadow: 0 1px 2px rgba(20, 20, 30, .06);
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141518; --card: #1d1f23; --ink: #ececec; --soft: #a5a9b1; --faint: #7d8189; --line: #303339;
    --train: #6ea8fe; --validation: #ff9c5b; --other: #4cc9b0; --shadow: none;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { font-size: 24px; margin: 0 0 2px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 10px; }
#subtitle { margin: 0 0 20px; color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; box-shadow: var(--shadow); }
#figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 12px; margin-bottom: 16px; }
#figures .card { padding: 12px 14px; }
#figures .name { color: var(--soft); font-size: 13px; }
#figures .value { font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; letter-spacing: -.01em; }
#figures .note { color: var(--faint); font-size: 12px; }
#controls { display: flex; flex-wrap: wrap; gap: 10px 24px; align-items: center; margin-bottom: 14px; color: var(--soft);
  font-size: 13px; }
#controls label, #controls div { display: flex; align-items: center; gap: 8px; }
.choice { border: 1px solid var(--line); border-radius: 7px; overflow: hidden; background: var(--card); gap: 0 !important; }
.choice button { border: 0; background: none; color: var(--soft); font: inherit; padding: 4px 12px; cursor: pointer; }
.choice button[aria-pressed=true] { background: var(--train); color: var(--card); }
.choice button:disabled { color: var(--faint); cursor: default; opacity: .5; }
input[type=range] { width: 130px; accent-color: var(--train); }
input[type=checkbox] { accent-color: var(--train); }
#charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; margin-bottom: 14px; }
figure { margin: 0; padding: 14px 16px 8px; position: relative; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
@media (max-width: 760px) { #charts { grid-template-columns: minmax(0, 1fr); } }
figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px; margin-bottom: 4px; }
figcaption b { font-size: 15px; font-weight: 600; }
figcaption .unit { color: var(--faint); font-size: 13px; margin-left: -8px; }
.key { color: var(--soft); font-size: 12.5px; display: inline-flex; align-items: center; gap: 6px; }
.key i { width: 14px; height: 0; border-top: 2.5px solid; border-radius: 2px; }
.key i.raw { border-top-width: 6px; opacity: .28; }
svg { display: block; width: 100%; touch-action: pan-y; }
svg text { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); }
svg .axis { stroke: var(--faint); }
svg .cross { stroke: var(--faint); stroke-dasharray: 3 3; }
.tip { position: absolute; pointer-events: none; padding: 7px 10px; font-size: 12.5px; white-space: nowrap; z-index: 2;
  font-variant-numeric: tabular-nums; box-shadow: 0 4px 14px rgba(0, 0, 0, .14); }
.tip .at { color: var(--soft); margin-bottom: 3px; }
.tip .row { display: flex; justify-content: space-between; gap: 16px; align-items: center; }
#run { padding: 16px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
td { padding: 5px 10px 5px 0; border-top: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
tr:first-child td { border-top: 0; }
td:first-child { color: var(--soft); width: 34%; }
td:last-child { font-variant-numeric: tabular-nums; }
footer { color: var(--faint); font-size: 12.5px; margin-top: 16px; }
@media print { #controls { display: none; } figure { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<h1 id="title">Training report</h1>
<p id="subtitle"></p>
<noscript>The curves are drawn by the script in this file.</noscript>
<section id="figures"></section>
<section id="controls">
<div>over <span class="choice" id="axis"></span></div>
<label>smoothing <input type="range" id="smoothing" min="0" max="100" value="50"></label>
<label><input type="checkbox" id="log"> logarithmic loss</label>
</section>
<section id="charts"></section>
<section id="run" class="card"><h2>Run</h2><table id="configuration"></table></section>
<footer>Made by ssm. Faint: what was measured; strong: smoothed. Long runs are drawn from means over neighbouring
steps.</footer>
</main>
<script type="application/json" id="data">@@DATA@@</script>
<script>
)page"
                                     R"page('use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const make = (tag, parent, text, cls) => {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (cls) e.className = cls;
  if (parent) parent.append(e);
  return e;
};
const known = list => list.filter(x => x !== null);
const last = list => { const k = known(list); return k.length ? k[k.length - 1] : null; };

// Numbers as people read them.
const trim = s => s.includes('.') ? s.replace(/\.?0+$/, '') : s;
function count(x) {
  for (const [size, unit] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']])
    if (Math.abs(x) >= size) return trim((x / size).toPrecision(Math.abs(x) >= 100 * size ? 4 : 3)) + unit;
  return trim(x.toPrecision(3));
}
const whole = x => Math.round(x).toLocaleString('en');
function plain(x) {
  const a = Math.abs(x);
  return a === 0 ? '0' : a < 1e-3 || a >= 1e5 ? trim(x.toExponential(2).replace(/e.*/, '')) + x.toExponential(2).replace(/.*e/, 'e')
    : trim(x.toPrecision(4));
}
function duration(s) {
  const pad = n => String(n).padStart(2, '0');
  if (s < 60) return trim(s.toFixed(s < 10 ? 1 : 0)) + 's';
  s = Math.round(s);
  if (s < 3600) return Math.floor(s / 60) + 'm' + (s % 60 ? pad(s % 60) + 's' : '');
  if (s < 86400) return Math.floor(s / 3600) + 'h' + (s % 3600 >= 60 ? pad(Math.floor(s / 60) % 60) + 'm' : '');
  return Math.floor(s / 86400) + 'd' + (s % 86400 >= 3600 ? pad(Math.floor(s / 3600) % 24) + 'h' : '');
}
const bytes = x => x === 0 ? '0' : x >= 2 ** 30 ? trim((x / 2 ** 30).toPrecision(3)) + ' GiB' : trim((x / 2 ** 20).toPrecision(x >= 1000 * 2 ** 20 ? 4 : 3)) + ' MiB';

const axes = {
  step: {name: 'steps', label: 'step', show: whole, tick: x => x >= 1e4 ? count(x) : whole(x), bases: [1, 2, 5]},
  tokens: {name: 'tokens', label: 'tokens', show: whole, tick: count, bases: [1, 2, 5]},
  seconds: {name: 'time', label: 'time', show: duration, tick: duration},
};
const state = {axis: 'step', smoothing: 50, log: false};

// The mean of the neighbours on both sides, whose weight fades with distance; a gap stays one.
function smoothed(list) {
  const width = list.length * 0.04 * (state.smoothing / 100) ** 2;
  const keep = width <= 0.5 ? 0 : 1 - 1 / (width + 0.5);
  const sums = list.map(() => [0, 0]);
  const sweep = (from, to, step, include) => {
    let sum = 0, weight = 0;
    for (let i = from; i !== to; i += step) {
      if (list[i] === null) continue;
      if (include) { sum = sum * keep + list[i]; weight = weight * keep + 1; }
      sums[i][0] += sum;
      sums[i][1] += weight;
      if (!include) { sum = (sum + list[i]) * keep; weight = (weight + 1) * keep; }
    }
  };
  sweep(0, list.length, 1, true);
  sweep(list.length - 1, -1, -1, false);
  return list.map((x, i) => x === null ? null : sums[i][0] / sums[i][1]);
}

function ticks(low, high, want, time) {
  const span = high - low || 1;
  let step;
  if (time && span > 10) {
    step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400]
      .find(s => span / s <= want) || 86400 * Math.ceil(span / want / 86400);
  } else {
    const power = 10 ** Math.floor(Math.log10(span / want));
    step = power * [1, 2, 5, 10].find(b => span / (power * b) <= want);
  }
  const list = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i) list.push(i * step);
  return list;
}
function logTicks(low, high) {
  const list = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); ++p)
    for (const b of [1, 2, 3, 5, 7]) { const t = b * 10 ** p; if (t >= low * .999 && t <= high * 1.001) list.push(t); }
  if (list.length >= 3) return list.length > 9 ? list.filter((t, i) => i % Math.ceil(list.length / 8) === 0) : list;
  return ticks(low, high, 5);
}
)page"
                                     R"page(
const svgNS = 'http://www.w3.org/2000/svg';
const draw = (tag, parent, attributes) => {
  const e = document.createElementNS(svgNS, tag);
  for (const k in attributes) e.setAttribute(k, attributes[k]);
  parent.append(e);
  return e;
};
const path = points => {
  let d = '', pen = false;
  for (const p of points) {
    if (p === null) { pen = false; continue; }
    d += (pen ? 'L' : 'M') + p[0].toFixed(1) + ' ' + p[1].toFixed(1);
    pen = true;
  }
  return d;
};

// A curve has values over all points of the run (`curve`), or is measured now and then (`points`).
class Chart {
  constructor(options) {
    Object.assign(this, {per: 1}, options);
    this.figure = make('figure', $('charts'), undefined, 'card' + (this.wide ? ' wide' : ''));
    const caption = make('figcaption', this.figure);
    make('b', caption, this.title);
    if (this.unit) make('span', caption, this.unit, 'unit');
    for (const s of this.series.length > 1 ? this.series : []) {
      const key = make('span', caption, undefined, 'key');
      const line = make('i', key);
      line.style.borderColor = s.color;
      key.append(s.name);
    }
    this.svg = draw('svg', this.figure, {role: 'img', 'aria-label': this.title});
    this.tip = make('div', this.figure, undefined, 'tip card');
    this.tip.hidden = true;
    this.svg.addEventListener('pointermove', e => this.hover(e));
    this.svg.addEventListener('pointerleave', () => this.leave());
  }
  x(s) { return s.points ? data.validation[state.axis] : data[state.axis]; }
  render() {
    const width = this.svg.clientWidth || 500, height = this.wide ? 340 : 220;
    const box = this.box = {left: 58, right: width - 24, top: 10, bottom: height - 40};
    this.svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.svg.setAttribute('height', height);
    this.svg.replaceChildren();
    const log = this.log && state.log;
    for (const s of this.series) s.line = s.points || !s.smooth ? s.values : smoothed(s.values);
    const seen = this.series.flatMap(s => known(s.values)).filter(y => !log || y > 0);
    const xs = this.series.flatMap(s => known(this.x(s)));
    if (!seen.length || !xs.length) return;
    let low = Math.min(...seen), high = Math.max(...seen);
    if (this.zero) low = Math.min(low, 0);
    const room = log ? 0 : (high - low || Math.abs(high) || 1) * .05;
    if (!this.zero || low < 0) low -= room;
    high += room;
    const x0 = state.axis === 'step' ? Math.min(...xs) : 0, x1 = Math.max(...xs);
    const f = log ? Math.log : y => y;
    this.px = x => x === null ? null : box.left + (x - x0) / (x1 - x0 || 1) * (box.right - box.left);
    this.py = y => box.bottom - (f(y) - f(low)) / (f(high) - f(low) || 1) * (box.bottom - box.top);
    for (const t of log ? logTicks(low, high) : ticks(low / this.per, high / this.per, this.wide ? 7 : 5).map(t => t * this.per)) {
      const y = this.py(t);
      draw('line', this.svg, {class: 'grid', x1: box.left, x2: box.right, y1: y, y2: y});
      draw('text', this.svg, {x: box.left - 8, y: y + 4, 'text-anchor': 'end'}).textContent = this.tick(t);
    }
    const axis = axes[state.axis];
    for (const t of ticks(x0, x1, Math.max(2, Math.floor((box.right - box.left) / 95)), state.axis === 'seconds')) {
      const x = this.px(t);
      draw('line', this.svg, {class: 'axis', x1: x, x2: x, y1: box.bottom, y2: box.bottom + 4});
      draw('text', this.svg, {x, y: box.bottom + 17, 'text-anchor': 'middle'}).textContent = axis.tick(t);
    }
    draw('line', this.svg, {class: 'axis', x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom});
    draw('text', this.svg, {x: (box.left + box.right) / 2, y: height - 5, 'text-anchor': 'middle'}).textContent = axis.label;
    for (const s of this.series) this.curve(s);
    this.over = draw('g', this.svg, {});
  }
  curve(s) {
    const xs = this.x(s).map(this.px);
    const at = (list, i) => xs[i] === null || list[i] === null || !isFinite(this.py(list[i])) ? null : [xs[i], this.py(list[i])];
    const points = list => list.map((y, i) => at(list, i));
    if (s.least && s.smooth && data.lines > s.values.length) {  // the range of what was measured
      let d = '';
      s.values.forEach((y, i) => {
        const a = at(s.least, i), b = at(s.most, i);
        if (a && b) d += `M${a[0].toFixed(1)} ${(a[1] + .5).toFixed(1)}V${(b[1] - .5).toFixed(1)}`;
      });
      draw('path', this.svg, {d, fill: 'none', stroke: s.color, 'stroke-width': 1, opacity: .22});
    } else if (s.smooth) {
      draw('path', this.svg, {d: path(points(s.values)), fill: 'none', stroke: s.color, 'stroke-width': 1, opacity: .3});
    }
    draw('path', this.svg, {d: path(points(s.line)), fill: 'none', stroke: s.color, 'stroke-width': 2,
      'stroke-linejoin': 'round', 'stroke-linecap': 'round'});
    if (s.points && s.values.length <= 60)
      for (const p of points(s.values)) if (p) draw('circle', this.svg, {cx: p[0], cy: p[1], r: 3, fill: s.color});
  }
  hover(event) {
    if (!this.over) return;
    const frame = this.svg.getBoundingClientRect();
    const mouse = event.clientX - frame.left;
    const nearest = s => {
      let best = -1;
      this.x(s).forEach((x, i) => {
        if (x !== null && s.line[i] !== null && (best < 0 || Math.abs(this.px(x) - mouse) < Math.abs(this.px(this.x(s)[best]) - mouse))) best = i;
      });
      return best;
    };
    const main = this.series.find(s => !s.points && known(s.values).length) || this.series[0];
    const i = nearest(main);
    if (i < 0) return;
    const x = this.px(this.x(main)[i]);
    this.over.replaceChildren();
    draw('line', this.over, {class: 'cross', x1: x, x2: x, y1: this.box.top, y2: this.box.bottom});
    this.tip.replaceChildren();
    const from = main.points ? data.validation : data;
    const where = Object.keys(axes).filter(a => from[a][i] !== null);
    make('div', this.tip, where.map(a => a === 'step' ? 'step ' + whole(from[a][i]) : a === 'tokens'
      ? count(from[a][i]) + ' tokens' : duration(from[a][i])).join(' · '), 'at');
    const row = (s, name, y) => {
      const line = make('div', this.tip, undefined, 'row');
      const key = make('span', line, undefined, 'key');
      make('i', key).style.borderColor = s.color;
      key.append(name);
      make('span', line, this.show(y));
    };
    for (const s of this.series) {
      const k = s === main ? i : nearest(s);
      if (k < 0) continue;
      draw('circle', this.over, {cx: this.px(this.x(s)[k]), cy: this.py(s.line[k]), r: 4, fill: s.color});
      const there = s.points && s !== main ? ` at ${axes.step.show(data.validation.step[k])}` : '';
      row(s, s.name + there, s.values[k]);
      if (s.smooth && Math.abs(s.line[k] - s.values[k]) > 1e-12) row(s, s.name + ', smoothed', s.line[k]);
    }
    this.tip.hidden = false;
    const card = this.figure.getBoundingClientRect();
    const left = frame.left - card.left + x + 14, flip = left + this.tip.offsetWidth > this.figure.clientWidth;
    this.tip.style.left = Math.max(4, flip ? left - 28 - this.tip.offsetWidth : left) + 'px';
    this.tip.style.top = frame.top - card.top + 14 + 'px';
  }
  leave() { this.tip.hidden = true; if (this.over) this.over.replaceChildren(); }
}
)page"
                                     R"page(
function flat(object, prefix, rows) {
  for (const [key, value] of Object.entries(object)) {
    const name = prefix ? prefix + '.' + key : key;
    if (value !== null && typeof value === 'object' && !Array.isArray(value)) flat(value, name, rows);
    else rows.push([name, Array.isArray(value) ? value.map(v => typeof v === 'string' ? v : JSON.stringify(v)).join(', ')
      : typeof value === 'string' ? value : JSON.stringify(value)]);
  }
  return rows;
}
function figure(name, value, note) {
  if (value === null) return;
  const card = make('div', $('figures'), undefined, 'card');
  make('div', card, name, 'name');
  make('div', card, value, 'value');
  make('div', card, note || '\u00a0', 'note');
}
function figures() {
  const end = smoothed(data.loss.mean), loss = last(end);
  const v = data.validation, best = v.loss.reduce((b, y, i) => y !== null && (b < 0 || y < v.loss[b]) ? i : b, -1);
  if (best >= 0)
    figure('validation loss', v.loss[best].toFixed(4), `best, at step ${whole(v.step[best])}`),
    figure('perplexity', plain(Math.exp(v.loss[best])), 'of that validation');
  if (loss !== null) figure('training loss', loss.toFixed(4), 'at the end, smoothed');
  const step = last(data.step), of = data.configuration.steps;
  if (step !== null) figure('steps', whole(step), typeof of === 'number' ? `of ${whole(of)}` : '');
  const tokens = last(data.tokens), seconds = last(data.seconds);
  if (tokens !== null) figure('tokens', count(tokens), whole(tokens));
  if (seconds !== null) figure('time', duration(seconds), '');
  if (tokens !== null && seconds > 0) figure('throughput', count(tokens / seconds) + '/s', 'tokens, over the whole run');
  const memory = known(data.memory.most);
  if (memory.length) figure('memory', bytes(Math.max(...memory)), 'at most');
}
const curve = (name, from, color, smooth) => ({name, values: from.mean, least: from.least, most: from.most, color, smooth});
const charts = [];
function addChart(options) {
  options.series = options.series.filter(s => known(s.values).length);
  if (options.series.length) charts.push(new Chart(options));
}
const render = () => { for (const c of charts) { c.leave(); c.render(); } };

function start() {
  const c = data.configuration;
  const title = typeof c.name === 'string' ? c.name : 'Training report';
  $('title').textContent = document.title = title;
  const said = ['model', 'family', 'device', 'started'].filter(k => typeof c[k] === 'string').map(k => c[k]);
  $('subtitle').textContent = said.join(' · ');
  figures();
  addChart({title: 'Loss', unit: 'nats a token', wide: true, log: true, tick: plain, show: y => y.toFixed(4), series: [
    curve('training', data.loss, 'var(--train)', true),
    {name: 'validation', values: data.validation.loss, points: true, color: 'var(--validation)'}]});
  addChart({title: 'Learning rate', tick: plain, show: plain, zero: true, series: [curve('learning rate', data.lr, 'var(--train)')]});
  addChart({title: 'Throughput', unit: 'tokens a second', tick: count, show: y => count(y) + '/s', zero: true,
    series: [curve('throughput', data.tokens_per_second, 'var(--other)', true)]});
  addChart({title: 'Gradient norm', unit: 'before clipping', tick: plain, show: plain, zero: true,
    series: [curve('norm', data.grad_norm, 'var(--train)', true)]});
  addChart({title: 'Memory', tick: bytes, per: Math.max(...known(data.memory.most), 0) >= 2 ** 30 ? 2 ** 30 : 2 ** 20, show: bytes, zero: true, series: [curve('memory', data.memory, 'var(--other)')]});
  for (const a in axes) {
    const button = make('button', $('axis'), axes[a].name);
    button.type = 'button';
    button.disabled = !known(data[a]).length && !known(data.validation[a]).length;
    button.setAttribute('aria-pressed', a === state.axis);
    button.onclick = () => {
      state.axis = a;
      for (const b of $('axis').children) b.setAttribute('aria-pressed', b === button);
      render();
    };
  }
  $('smoothing').oninput = e => { state.smoothing = Number(e.target.value); render(); };
  $('log').onchange = e => { state.log = e.target.checked; render(); };
  for (const [name, value] of flat(c, '', [])) {
    const row = make('tr', $('configuration'));
    make('td', row, name);
    make('td', row, value);
  }
  $('run').hidden = !$('configuration').children.length;
  render();
  new ResizeObserver(render).observe($('charts'));
}
start();
</script>
</body>
</html>
)page";

}  // namespace ssm::train
