
"use strict";
// Shows /layers, over and over. Texts are set as text only, so nothing in them is ever markup.
const EVERY = 2000, PATIENCE = 5000;
const byId = (id) => document.getElementById(id);
let before = null, answeredAt = null;

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function amount(value, unit) {
  if (unit !== "bytes") return value.toLocaleString("en");
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let power = 0;
  while (value >= 1024 && power < units.length - 1) { value /= 1024; power += 1; }
  return `${power === 0 ? value : value.toFixed(1)} ${units[power]}`;
}

function span(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = Math.max(0, parts.findIndex(([size]) => seconds >= size));
  const [[size, unit], next] = [parts[seconds < 1 ? 3 : at], parts[at + 1]];
  const rest = next && seconds >= 1 ? Math.floor((seconds % size) / next[0]) : 0;
  return `${Math.floor(seconds / size)} ${unit}` + (rest ? ` ${rest} ${next[1]}` : "");
}

function shown(value) {
  if (value === null) return "none";
  if (value === true) return "yes";
  if (value === false) return "no";
  return typeof value === "number" ? value.toLocaleString("en") : String(value);
}

// Per second, since the answer before; empty for what does not only grow.
function rate(key, counter, now) {
  now.values[key] = counter.value;
  if (!counter.total || !before || !(key in before.values)) return "";
  const grown = counter.value - before.values[key], seconds = (now.at - before.at) / 1000;
  if (grown <= 0 || seconds <= 0) return "";
  const per = grown / seconds;
  return `${amount(counter.unit ? per : Number(per.toPrecision(3)), counter.unit)}/s`;
}

function bar(part) {
  const svg = document.createElementNS("http" + "://www.w3.org/2000/svg", "svg");
  const rect = document.createElementNS(svg.namespaceURI, "rect");
  rect.setAttribute("width", `${Math.min(100, part * 100)}%`);
  rect.setAttribute("height", "100%");
  svg.setAttribute("class", "bar");
  svg.setAttribute("aria-hidden", "true");
  svg.append(rect);
  return svg;
}

function counterRow(key, counter, now) {
  const row = make("div", "counter");
  if (counter.limit) row.append(bar(counter.value / counter.limit));
  const full = counter.limit && counter.value >= counter.limit;
  const lost = counter.value > 0 && ["refused", "dropped"].includes(counter.name);
  if (full || lost) row.classList.add("alert");
  const number = make("span", "", make("b", "", amount(counter.value, counter.unit)));
  if (counter.limit) number.append(` of ${amount(counter.limit, counter.unit)}`);
  const pace = rate(key, counter, now);
  if (pace) number.append(make("span", "rate", `  ${pace}`));
  row.append(make("span", "", counter.name), number);
  return row;
}

function valueRow(value) {
  const cell = make("dd", value.is_default ? "" : "set", shown(value.value));
  if (!value.is_default) cell.append(make("small", "", `default ${shown(value.default)}`));
  return [make("dt", "", value.key), cell];
}

function layerCard(plane, layer, number, now) {
  const card = make("article", "layer", make("h3", "", make("i", "", String(number)), layer.name), make("p", "", layer.does));
  if (layer.refuses) card.append(make("p", "", `refuses with ${layer.refuses}`));
  for (const counter of layer.counters || []) {
    card.append(counterRow(`${plane.plane}.${layer.name}.${counter.name}`, counter, now));
  }
  if (layer.values.length) card.append(make("dl", "", ...layer.values.flatMap(valueRow)));
  return card;
}

function planeStack(plane, now) {
  const stack = make("section", "plane", make("h2", "", `${plane.plane} plane`));
  stack.append(make("p", "carries", plane.carries + (plane.default_order ? "" : " (order set by the configuration)")));
  stack.append(make("div", "end", plane.outer_end));
  plane.layers.forEach((layer, at) => stack.append(layerCard(plane, layer, at + 1, now)));
  stack.append(make("div", "end inner", plane.inner_end));
  if (plane.left_out.length) stack.append(make("p", "left-out", `left out: ${plane.left_out.join(", ")}`));
  return stack;
}

function totalTile(counter, now) {
  const tile = make("div", "total", make("b", "", amount(counter.value, counter.unit)), make("span", "", counter.name));
  const pace = rate(`gateway.${counter.name}`, counter, now);
  if (pace) tile.append(make("span", "rate", ` ${pace}`));
  return tile;
}

function reloadNote(reload) {
  const box = byId("reload");
  box.replaceChildren();
  if (!reload || !reload.last) return;
  const last = reload.last, by = last.trigger === "signal" ? "SIGHUP" : "a changed file";
  const when = make("b", "", `Last reload ${last.at}, by ${by}: `);
  let text = "no value changed", lines = [];
  box.className = "";
  if (last.result === "refused") {
    box.className = "refused";
    text = "refused, the values from before stay in force";
    lines = last.reasons;
  } else {
    if (last.changed.length) text = `${last.changed.length} value${last.changed.length > 1 ? "s" : ""} changed`;
    lines = last.changed.map((each) => `${each.key}: ${shown(each.from)} is now ${shown(each.to)}`);
    if (last.needs_restart.length) {
      box.className = "waiting";
      lines.push(`waits for a restart: ${last.needs_restart.join(", ")}`);
    }
    if (last.faults.length) {
      box.className = "refused";
      lines.push(...last.faults.map((fault) => `the TLS files from before stay in use: ${fault}`));
    }
  }
  box.append(make("p", "", when, text));
  if (lines.length) box.append(make("ul", "", ...lines.map((line) => make("li", "", line))));
}

function show(report) {
  const now = { at: performance.now(), values: {} };
  byId("gateway").textContent =
    `gateway ${report.gateway.version} at ${report.gateway.address}, up ${span(report.gateway.uptime_seconds)}`;
  byId("totals").replaceChildren(...report.gateway.counters.map((counter) => totalTile(counter, now)));
  byId("planes").replaceChildren(...report.planes.map((plane) => planeStack(plane, now)));
  reloadNote(report.reload);
  before = now;
}

function state(good, text) {
  byId("state").classList.toggle("stale", !good);
  byId("state").textContent = text;
}

async function refresh() {
  try {
    const answer = await fetch("layers", { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
    answeredAt = performance.now();
    state(true, "live");
  } catch {
    const since = answeredAt === null ? "" : ` for ${span((performance.now() - answeredAt) / 1000)}; numbers are old`;
    state(false, `no answer${since}`);
  }
  setTimeout(refresh, EVERY);
}

refresh();
