"use strict";
const $ = id => document.getElementById(id);
const el = (tag, attrs = {}, ...kids) => { const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs)) k === "class" ? e.className = v : k === "width" ? e.style.width = v : e.setAttribute(k, v);
  e.append(...kids.map(k => k ?? "")); return e; };
const NS = "http://www.w3.org/2000/svg";
const svg = (tag, attrs, text) => { const e = document.createElementNS(NS, tag);
  for (const [k, v] of Object.entries(attrs || {})) e.setAttribute(k, v); if (text !== undefined) e.textContent = text; return e; };
const num = (x, d = 4) => x === null || x === undefined ? "–" : typeof x === "number" ? String(+x.toPrecision(d)) : String(x);
const bytes = b => typeof b !== "number" ? "–" : b < 1e3 ? `${b} B` : b < 1e6 ? `${num(b / 1e3, 3)} kB` : `${num(b / 1e6, 3)} MB`;
const COLOURS = ["var(--a)", "var(--warn)", "var(--good)", "var(--bad)"], DASH = ["", "7 4", "2 4", "9 3 2 3"];
const nice = (lo, hi) => { const raw = (hi - lo) / 4 || 1, m = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(k => k * m).find(s => s >= raw * .999), out = [];
  for (let i = Math.floor(lo / step + 1e-9); i <= Math.ceil(hi / step - 1e-9); i++) out.push(+(i * step).toPrecision(10)); return out; };
function chart(into, series, label, limits, rounds) {
  series = series.map(s => ({ ...s, points: s.points.filter(p => typeof p[1] === "number") })).filter(s => s.points.length);
  const same = new Map(); for (const s of series) { const k = JSON.stringify(s.points); same.has(k) ? same.get(k).names.push(s.name) : same.set(k, { names: [s.name], points: s.points }); }
  let lines = [...same.values()]; lines.sort((a, b) => b.points.at(-1)[1] - a.points.at(-1)[1]); const more = Math.max(0, lines.length - 4); lines = lines.slice(0, 4);
  if (!lines.length) { into.replaceChildren(el("p", { class: "soft" }, "Nothing yet.")); return; }
  const ys = lines.flatMap(s => s.points.map(p => p[1])).concat(limits.map(l => l[1]));
  const t = nice(Math.min(0, ...ys), Math.max(...ys)), y0 = t[0], y1 = t.at(-1) || 1, x1 = Math.max(rounds, 2), W = Math.max(300, Math.min(into.clientWidth || 620, 900)), H = W < 480 ? 220 : 270, L = 52, R = 14, T = 14, B = 40;
  const X = v => L + (v - 1) / (x1 - 1) * (W - L - R), Y = v => H - B - (v - y0) / (y1 - y0) * (H - T - B);
  const words = lines.map(s => `${s.names.join(", ")}: ${num(s.points.at(-1)[1])} after round ${s.points.at(-1)[0]}`).join("; ") + limits.map(l => `; ${l[0]} ${num(l[1])}`).join("");
  const g = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${label}. ${words}` });
  for (const v of t) { g.append(svg("line", { x1: L, x2: W - R, y1: Y(v), y2: Y(v), stroke: "var(--line)", "stroke-width": .8 }), svg("text", { x: L - 7, y: Y(v) + 4, "text-anchor": "end" }, num(v))); }
  const steps = [...new Set([1, .25, .5, .75, 1].map((k, i) => i ? Math.max(1, Math.round(k * x1)) : 1))];
  for (const v of steps) g.append(svg("text", { x: X(v), y: H - B + 18, "text-anchor": "middle" }, v));
  g.append(svg("text", { x: (L + W - R) / 2, y: H - 5, "text-anchor": "middle" }, "round"));
  for (const limit of limits) g.append(svg("line", { x1: L, x2: W - R, y1: Y(limit[1]), y2: Y(limit[1]), stroke: "var(--bad)", "stroke-width": 1.6, "stroke-dasharray": "8 4" }), svg("text", { x: W - R, "text-anchor": "end", y: Y(limit[1]) + (Y(limit[1]) < T + 16 ? 15 : -5), class: "atlimit" }, `${limit[0]}: ${num(limit[1])}`));
  lines.forEach((s, i) => { g.append(svg("polyline", { points: s.points.map(p => `${X(p[0]).toFixed(1)},${Y(p[1]).toFixed(1)}`).join(" "), fill: "none", stroke: COLOURS[i], "stroke-width": 2.2, "stroke-dasharray": DASH[i] }));
    const p = s.points.at(-1); g.append(svg("circle", { cx: X(p[0]), cy: Y(p[1]), r: 3.5, fill: COLOURS[i] })); });
  const key = el("p", { class: "soft" }); lines.forEach((s, i) => { const m = svg("svg", { width: 30, height: 8, viewBox: "0 0 30 8", "aria-hidden": "true", class: "key" });
    m.append(svg("line", { x1: 0, x2: 30, y1: 4, y2: 4, stroke: COLOURS[i], "stroke-width": 2.6, "stroke-dasharray": DASH[i] }));
    const n = s.names.length > 3 ? `${s.names[0]} … ${s.names.at(-1)} (${s.names.length} alike)` : s.names.join(", "); key.append(el("span", { class: "pair" }, m, `${n} ${num(s.points.at(-1)[1])}`), " "); });
  if (more) key.append(` and ${more} more below`); into.replaceChildren(g, key);
}
let last = "", chosen = new URLSearchParams(location.search).get("run") || "";
function show(data) {
  const pick = $("runs"); if (data.runs.join() !== [...pick.options].map(o => o.value).join()) pick.replaceChildren(...data.runs.map(r => el("option", { value: r }, r)));
  $("pick").hidden = data.runs.length < 2;
  const r = data.run; if (!r) { $("state").textContent = "no run here yet"; return; }
  pick.value = r.name; $("name").textContent = r.name; document.title = `${r.name}: Tacit`;
  const alerts = []; if (r.error) alerts.push(`The plan cannot be read: ${r.error}`);
  if (r.unreadable) alerts.push(`${r.unreadable} line(s) of the history cannot be read and are left out.`);
  if (r.unit === "none") alerts.push("No privacy protection: this run is trained without noise."); if (r.insecure) alerts.push("Not private: the noise of this run can be reproduced.");
  if (r.unit === "client") alerts.push("Not protected from the coordinator, who adds the noise.");
  if ($("alerts").textContent !== alerts.join("")) $("alerts").replaceChildren(...alerts.map(a => el("p", { class: "alert" }, a)));
  if (r.error) { $("state").textContent = "cannot be shown"; return; }
  const end = { done: "finished", budget: "stopped: every site's budget is spent", failed: "failed" }[r.ended] || r.ended;
  const status = (end && end + (r.detail && r.ended === "failed" ? `: ${r.detail}` : "")) || (r.idle > 120 ? `nothing new for ${Math.round(r.idle / 60)} minutes` : r.done < r.rounds ? `running: round ${r.done + 1} of ${r.rounds}` : "finishing");
  if ($("state").textContent !== status) $("state").textContent = status;
  $("purpose").textContent = r.purpose ? `${r.purpose} (${r.task})` : r.task;
  const h = r.history.at(-1), names = h && h.metrics ? Object.keys(h.metrics) : [], lead = ["accuracy", "r2", "mse", "c_index", "deviance", "mae", "loss"].find(n => names.includes(n)) || names[0];
  const busy = r.sites.filter(s => s.status === "trained" && s.last === r.done).length;
  const tiles = [["Rounds", `${r.done} of ${r.rounds}`], ["Sites in the last round", `${busy} of ${r.sites.length}`], [lead || "Quality", lead ? num(h.metrics[lead]) : "–"],
    ["ε so far", r.unit === "none" ? "none" : num(r.epsilon)], ["δ", num(r.delta)], ["Seconds a round", h ? num(h.seconds, 3) : "–"], ["Sent a round", bytes(h?.bytes_down)], ["Received a round", bytes(h?.bytes_up)]];
  $("tiles").replaceChildren(...tiles.map(([k, v]) => el("div", {}, el("dt", {}, k), el("dd", {}, v))));
  $("progress").replaceChildren(el("progress", { max: r.rounds, value: r.done, "aria-label": `${r.done} of ${r.rounds} rounds` }));
  $("h-q").textContent = lead ? `Quality (${lead}) after each round` : "Quality after each round";
  chart($("quality"), lead ? [{ name: lead, points: r.history.map(x => [x.round, x.metrics && x.metrics[lead]]) }] : [], `Quality, ${lead}`, [], r.rounds);
  const strict = r.sites.some(s => s.limit !== null), bounds = new Map();
  for (const s of r.sites) { const v = strict ? s.limit : s.planned; if (typeof v === "number") bounds.set(v, [...(bounds.get(v) || []), s.name]); }
  const word = strict ? "limit" : "planned", of = n => n.length > 2 ? `of ${n.length} sites` : `of ${n.join(", ")}`;
  const limits = [...bounds].sort((a, b) => a[0] - b[0]).slice(0, 3).map(([v, n]) => [bounds.size > 1 ? `${word} ${of(n)}` : word, v]);
  chart($("spent"), r.sites.map(s => ({ name: s.name, points: s.epsilons })), "Privacy spent", limits, r.rounds);
  $("sites").replaceChildren(...r.sites.map(s => { const top = s.limit ?? s.planned, share = typeof top === "number" && typeof s.epsilon === "number" ? Math.min(1, s.epsilon / top) : null;
    const bar = share === null ? "–" : el("div", {}, `${Math.round(100 * share)} %${s.limit === null ? " of the plan" : ""}`, el("div", { class: "bar" + (share > .98 && s.limit !== null ? " full" : ""), "aria-hidden": "true" }, el("i", { width: `${100 * share}%` })));
    return el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader" }, s.name), el("td", { role: "cell", "data-l": "Last answer" }, el("span", { class: `status ${s.status}` }, { trained: "✓ trained", declined: "– declined", failed: "✗ failed", waiting: "… waiting" }[s.status] || s.status), s.reason ? ` ${s.reason}` : ""),
      el("td", { role: "cell", class: "n", "data-l": "Rounds trained" }, s.trained), el("td", { role: "cell", class: "n", "data-l": "ε spent" }, num(s.epsilon)), el("td", { role: "cell", class: "n", "data-l": "Limit" }, num(s.limit)), el("td", { role: "cell", "data-l": "Share" }, bar)); }));
  $("lead").textContent = lead || "Quality";
  $("rounds").replaceChildren(...r.history.slice(-500).reverse().map(x => el("tr", {}, el("th", { scope: "row" }, String(x.round)), ...[`${x.trained} of ${x.asked}`, num(x.metrics[lead]), num(x.epsilon), num(x.seconds, 3), bytes(x.bytes_down), bytes(x.bytes_up)].map(v => el("td", { class: "n" }, v)))));
  const no = r.sites.flatMap(s => s.refusals.map(x => [s.name, x]));
  $("refusals").replaceChildren(no.length ? el("ul", {}, ...no.map(([n, x]) => el("li", {}, `${n} ${x.status}: ${[x.words, x.code && `(${x.code})`].filter(Boolean).join(" ")}, ${x.times > 1 ? `${x.times} times, rounds ${x.first} to ${x.last}` : `round ${x.first}`}`))) : el("p", { class: "soft" }, "None."));
}
let whole = null, cursor = "";
function merged(data) { // what is new since the last look, put to what is known
  const r = data.run; if (r && !r.error && r.after) { const sites = new Map(whole.run.sites.map(s => [s.name, s]));
    for (const s of r.sites) sites.set(s.name, { ...s, epsilons: [...(sites.get(s.name)?.epsilons || []), ...s.epsilons] });
    r.history = whole.run.history.slice(0, r.after).concat(r.history); r.sites = [...sites.values()].sort((a, b) => a.name < b.name ? -1 : 1); }
  cursor = r?.cursor || ""; return whole = data; }
let paused = false;
$("pause").addEventListener("click", () => { paused = !paused; $("pause").setAttribute("aria-pressed", paused); $("pause").textContent = paused ? "Go on" : "Pause"; });
async function look() {
  if (!paused) try { const a = await fetch(`state?run=${encodeURIComponent(chosen)}&since=${cursor}`, { cache: "no-store" }), text = await a.text();
    if (!a.ok) throw new Error(text);
    const told = text.replace(/"idle": ?[0-9.]+/, m => String(+(m.split(":")[1]) > 120 ? Math.round(+(m.split(":")[1]) / 60) : 0));
    if (told !== last) { last = told; show(merged(JSON.parse(text))); } }
  catch { last = cursor = ""; $("state").textContent = "the dashboard has ended; these are its last figures"; }
  setTimeout(look, document.hidden ? 5000 : 1000);
}
$("runs").addEventListener("change", e => { chosen = e.target.value; last = cursor = ""; history.replaceState(null, "", `?run=${encodeURIComponent(chosen)}`); });
addEventListener("resize", () => { last = ""; });
look();
