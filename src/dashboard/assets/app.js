// The operator's page. Everything that comes from the device is put in as text, never as markup.
"use strict";

const RECENT_MAX = 100;          // as limits::DASHBOARD_RECENT_MAX
const STRIP_MAX = 40;            // thumbnails drawn
const SILENCE_MS_MAX = 5000;     // a status comes each second: five missed = the connection is lost
const RETRY_MS = [1000, 2000, 4000, 8000];
const CLOCK_SKEW_MS_MAX = 5000;
const SPEAK_INTERVAL_MS = 2000;  // a screen reader is told at most this often
const WORDS = { pass: "PASS", hold: "HOLD", fail: "FAIL" };
const STAGES = ["decode", "quality", "locate", "embed", "match", "anomaly", "decide", "commit"];

const state = {
  inspections: [],               // newest first
  status: null,
  station: null,                 // null = the newest of any
  pickedId: null,                // null = live
  mode: "picture",
  boxes: true,
  pickedItem: null,
  isConnected: false,
  lastHeard: 0,
  retries: 0,
  isDirty: false,
};
const $ = (id) => document.getElementById(id);

// ---- small helpers -------------------------------------------------------------------------------------------------

function element(tag, { text, className, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function svg(tag, attributes = {}, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function shape(verdict, className) {
  const node = svg("svg", { "aria-hidden": "true", class: className || "" });
  node.append(svg("use", { href: `#shape-${verdict in WORDS ? verdict : "none"}` }));
  return node;
}

const count = (n) => Number(n).toLocaleString("en").replaceAll(",", "\u202f");
const fixed = (n, digits) => (n === null || n === undefined ? "–" : Number(n).toFixed(digits));
const percent = (ratio) => (ratio === null || ratio === undefined ? "–" : `${(ratio * 100).toFixed(1)} %`);
const clockOf = (time) => new Date(time).toLocaleTimeString("en-GB");
const artifactUrl = (artifact) => "/artifacts/" + artifact.relative_path.split("/").map(encodeURIComponent).join("/");
const artifact = (inspection, kind) => inspection.artifacts.find((a) => a.kind === kind);

function span(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

// ---- what is shown -------------------------------------------------------------------------------------------------

const ofStation = () => state.inspections.filter((i) => state.station === null || i.station === state.station);
const live = () => ofStation()[0];
const shown = () => (state.pickedId && state.inspections.find((i) => i.inspection_id === state.pickedId)) || live();

// Several inspections a frame become one drawing.
function invalidate() {
  if (state.isDirty) return;
  state.isDirty = true;
  requestAnimationFrame(() => {
    state.isDirty = false;
    draw();
  });
}

function draw() {
  if (state.pickedId && !state.inspections.some((i) => i.inspection_id === state.pickedId)) state.pickedId = null;
  const inspection = shown();
  drawStations();
  drawVerdict(inspection);
  drawReview();
  drawPicture(inspection);
  if (inspection) {
    drawReasons(inspection);
    drawAnomaly(inspection);
    drawItems(inspection);
    drawTimings(inspection);
    if (typeof drawReviewForm === "function") drawReviewForm(inspection);
    if (typeof drawFeedbackForm === "function") drawFeedbackForm(inspection);
  }
  drawStrip(inspection);
}

function drawStations() {
  const stations = (state.status && state.status.stations) || [];
  const nav = $("stations");
  nav.hidden = stations.length < 2;
  if (nav.hidden) return;
  nav.replaceChildren(...stations.map((station) => {
    const newest = state.inspections.find((i) => i.station === station.name);
    const verdict = newest ? newest.verdict : "none";
    const stalled = station.state === "stalled" ? " · stalled" : "";
    const words = element("span", {}, element("b", { text: newest ? WORDS[verdict] : "–" }), element("small", { text: station.name + stalled }));
    const button = element("button", { "data-verdict": verdict, "aria-pressed": String(state.station === station.name), title: `${station.recipe}, ${station.source}` }, shape(verdict), words);
    button.addEventListener("click", () => {
      state.station = state.station === station.name ? null : station.name;
      goLive();
    });
    return button;
  }));
}

function drawVerdict(inspection) {
  const verdict = inspection ? inspection.verdict : "none";
  $("verdict").dataset.verdict = verdict;
  $("verdict-shape").setAttribute("href", `#shape-${verdict}`);
  $("verdict-word").textContent = inspection ? WORDS[verdict] : "–";
  drawAge();
  document.title = inspection ? `${WORDS[verdict]} · Loupe` : "Loupe";
}

function drawAge() {
  const inspection = shown();
  if (!inspection) return;
  const now = state.status ? Date.parse(state.status.now) + (Date.now() - state.status.heard) : Date.now();
  const age = (now - Date.parse(inspection.decided_at)) / 1000;
  $("verdict-when").textContent = `${inspection.station} · ${clockOf(inspection.decided_at)}${age >= 2 ? ` · ${span(age)} ago` : ""}`;
}

function drawReview() {
  const isReview = state.pickedId !== null;
  $("review").hidden = !isReview;
  const newest = live();
  if (!isReview || !newest) return;
  const chip = element("span", { className: "chip", "data-verdict": newest.verdict }, shape(newest.verdict), WORDS[newest.verdict]);
  $("review-text").replaceChildren("Looking back. Now:", chip);
}

function drawPicture(inspection) {
  const picture = $("picture");
  const has = (kind) => Boolean(inspection && artifact(inspection, kind));
  const hasPicture = has("frame") || has("overlay") || has("thumbnail");
  const mode = state.mode !== "picture" && has(state.mode) ? state.mode : "picture";
  $("show-heatmap").disabled = !has("heatmap");
  $("show-comparison").disabled = !has("comparison");
  $("show-picture").setAttribute("aria-pressed", String(mode === "picture"));
  $("show-heatmap").setAttribute("aria-pressed", String(mode === "heatmap"));
  $("show-comparison").setAttribute("aria-pressed", String(mode === "comparison"));
  $("show-boxes").setAttribute("aria-pressed", String(state.boxes));
  $("code").textContent = inspection ? inspection.code || "–" : "–";
  $("source").textContent = inspection ? `${inspection.source} · ${inspection.recipe}` : "";
  $("source").title = $("source").textContent;
  const kinds = mode !== "picture" ? [mode] : ["frame", "overlay", "thumbnail"];
  const found = inspection && kinds.map((kind) => artifact(inspection, kind)).find(Boolean);
  picture.hidden = !found;
  $("stage-empty").hidden = Boolean(found);
  if (!found) {
    $("stage-empty").textContent = !inspection ? "Waiting for the first inspection." : hasPicture ? "" : "No picture was kept for this inspection.";
    picture.removeAttribute("src");
  } else {
    const url = artifactUrl(found);
    if (picture.getAttribute("src") !== url) picture.setAttribute("src", url);
    picture.alt = `${WORDS[inspection.verdict]}: ${inspection.source}, ${inspection.items.length} items`;
  }
  // The overlay artifact has its boxes drawn in already.
  drawBoxes(inspection, Boolean(found) && state.boxes && found.kind !== "overlay" && found.kind !== "comparison");
}

function drawBoxes(inspection, isOn) {
  const layer = $("boxes");
  layer.replaceChildren();
  if (!isOn || !inspection.width_px || !inspection.height_px) return;
  const { width, height } = $("stage").getBoundingClientRect();
  const scale = Math.min(width / inspection.width_px, height / inspection.height_px);
  const left = (width - inspection.width_px * scale) / 2;
  const top = (height - inspection.height_px * scale) / 2;
  layer.setAttribute("viewBox", `0 0 ${width} ${height}`);
  // Worst last, so that it lies on top.
  const gravity = { pass: 0, hold: 1, fail: 2 };
  for (const item of [...inspection.items].sort((a, b) => gravity[a.verdict] - gravity[b.verdict])) {
    const placeOf = ([x1, y1, x2, y2]) => ({ x: left + x1 * scale, y: top + y1 * scale, width: Math.max(1, (x2 - x1) * scale), height: Math.max(1, (y2 - y1) * scale), rx: 2 });
    const places = (item.views ? item.views.map((view) => view.bbox) : [item.bbox]).map(placeOf);
    const [place] = places;
    const group = svg("g", { class: item.ordinal === state.pickedItem ? "is-picked" : "" });
    for (const each of places) group.append(svg("rect", { ...each, class: "halo" }), svg("rect", { ...each, class: item.verdict }));
    layer.append(group);
    const name = item.verdict === "pass" ? nameOf(item) : `${WORDS[item.verdict]} ${nameOf(item)}`;
    if (item.label !== "frame" || item.part_id) drawTag(group, name, item.verdict, place, { width, height });
  }
}

function drawTag(group, name, verdict, place, stage) {
  const text = svg("text", { class: `on-${verdict}` }, name);
  group.append(text);
  const width = text.getComputedTextLength() + 12;
  const x = Math.max(0, Math.min(place.x - 1, stage.width - width));
  const y = place.y >= 20 ? place.y - 19 : Math.min(place.y + 1, stage.height - 20);
  text.setAttribute("x", x + 6);
  text.setAttribute("y", y + 14);
  text.before(svg("rect", { x, y, width, height: 19, rx: 3, class: `tag tag-${verdict}` }));
}

// An accepted part by its number; one in doubt by its best candidate, marked as a question.
function nameOf(item) {
  if (item.part_id) return item.part_id;
  return item.matched ? `${item.matched.part_id}?` : item.label;
}

/** What each view by itself is most alike; empty for an item that was seen once. */
function viewsOf(item) {
  if (!item.views) return "";
  return `${item.views.length} views: ${item.views.map((view) => `${view.part_id || "–"} ${fixed(view.similarity, 2)}`).join(", ")}`;
}

/** What a fit says of a match; empty where the index has none. */
function surenessOf(match) {
  if (!match || !Number.isFinite(match.probability)) return "";
  const asked = Number.isFinite(match.required_probability) ? `, ${percent(match.required_probability)} asked` : "";
  const unknown = Number.isFinite(match.unknown_probability) ? `; ${percent(match.unknown_probability)} no part of the catalogue` : "";
  return `${percent(match.probability)} sure${asked}${unknown}`;
}

function rivalsOf(match) {
  const line = (part) => `${part.part_id}: ${percent(part.probability)}, likeness ${fixed(part.likeness, 3)}, centre ${fixed(part.centre, 3)}`;
  return match.top_k.map(line).join("\n");
}

function drawReasons(inspection) {
  const advice = inspection.advice || {};
  const lines = inspection.reasons.map((code) => element("li", { className: inspection.verdict }, advice[code] || code, element("code", { text: code })));
  if (!lines.length) lines.push(element("li", { className: "pass", text: "every check passed" }));
  $("reasons").replaceChildren(...lines);
}

function drawAnomaly(inspection) {
  const evidence = inspection.anomaly;
  $("anomaly-section").hidden = !evidence;
  if (!evidence) return;
  const isAbove = evidence.score >= evidence.threshold;
  const at = (score) => Math.max(0, Math.min(100, score * 100));
  const scale = svg("svg", { viewBox: "0 0 100 16", preserveAspectRatio: "none", "aria-hidden": "true" });
  scale.append(
    svg("rect", { x: 0, y: 5, width: 100, height: 6, fill: "var(--line)" }),
    svg("rect", { x: 0, y: 5, width: at(evidence.score), height: 6, fill: isAbove ? "var(--fail)" : "var(--pass)" }),
    svg("rect", { x: at(evidence.threshold) - 0.4, y: 0, width: 0.8, height: 16, fill: "var(--ink)" }),
  );
  const words = element("b", { className: isAbove ? "fail-text" : "pass-text", text: fixed(evidence.score, 3) });
  const note = element("small", { text: `threshold ${fixed(evidence.threshold, 2)}, raw ${fixed(evidence.score_raw, 3)}, ${(evidence.area_above_ratio * 100).toFixed(1)} % of the surface above` });
  $("anomaly").replaceChildren(scale, words, note);
}

function drawItems(inspection) {
  const items = inspection.items.filter((item) => item.label !== "frame" || item.matched);
  $("items-section").hidden = items.length === 0;
  const held = items.filter((item) => item.verdict !== "pass").length;
  $("items-count").textContent = held ? `${items.length}, ${held} not passed` : String(items.length);
  $("items").replaceChildren(...items.map((item) => {
    const match = item.matched;
    const similarity = item.similarity ?? (match && match.similarity);
    const margin = item.margin ?? (match && match.margin);
    const tier = item.tier ?? (match && match.tier);
    const words = item.reasons.map((code) => (inspection.advice || {})[code] || code).join("; ");
    const name = element("td", { text: nameOf(item) });
    if (item.reasons.length) name.append(element("small", { text: item.reasons.join(", ") }));
    const sure = surenessOf(match);
    if (sure) name.append(element("small", { text: sure, title: rivalsOf(match) }));
    const views = viewsOf(item);
    if (views) name.append(element("small", { text: views, title: "what each view by itself is most alike; the decision rests on all of them" }));
    const mark = element("td", { title: words || "passed" }, shape(item.verdict, item.verdict), element("span", { className: "spoken", text: WORDS[item.verdict] }));
    const row = element("tr", { className: item.ordinal === state.pickedItem ? "is-picked" : "" },
      mark, name,
      element("td", { className: "n", text: fixed(similarity, 3) }),
      element("td", { className: "n", text: margin === 2 ? "alone" : fixed(margin, 3) }),
      element("td", { text: tier ? tier.toUpperCase() : "–" }));
    row.addEventListener("pointerenter", () => pickItem(item.ordinal));
    row.addEventListener("pointerleave", () => pickItem(null));
    return row;
  }));
}

function pickItem(ordinal) {
  state.pickedItem = ordinal;
  drawPicture(shown());
}

function drawTimings(inspection) {
  const times = inspection.timings_ms;
  const parts = STAGES.map((stage) => [stage, times[stage]]).filter(([, ms]) => ms > 0);
  const waiting = times.total - parts.reduce((sum, [, ms]) => sum + ms, 0);
  if (waiting > 0.05) parts.push(["waiting", waiting]);
  const late = inspection.deadline_ms && times.total > inspection.deadline_ms;
  $("time-total").textContent = `${fixed(times.total, 1)} ms${inspection.deadline_ms ? ` of ${fixed(inspection.deadline_ms, 0)} allowed` : ""}`;
  $("time-total").className = late ? "fail-text" : "";
  $("timings").setAttribute("aria-label", parts.map(([stage, ms]) => `${stage} ${fixed(ms, 1)} ms`).join(", "));
  $("timings").replaceChildren(...parts.map(([stage, ms]) => {
    const bar = element("span", { className: `s-${stage}`, title: `${stage} ${fixed(ms, 2)} ms` });
    bar.style.flexGrow = String(ms);
    return bar;
  }));
  $("timings-legend").replaceChildren(...parts.map(([stage, ms]) => element("li", {}, element("i", { className: `s-${stage}` }), `${stage} ${fixed(ms, 1)}`)));
}

function drawStrip(inspection) {
  const strip = $("strip");
  const isFocusInside = strip.contains(document.activeElement);
  const known = new Map([...strip.children].map((node) => [node.dataset.id, node]));
  const wanted = ofStation().slice(0, STRIP_MAX).map((i) => known.get(i.inspection_id) || stripEntry(i));
  strip.replaceChildren(...wanted);
  for (const node of wanted) {
    const isShown = Boolean(inspection) && node.dataset.id === inspection.inspection_id;
    node.firstChild.setAttribute("aria-current", String(isShown));
    if (isShown && isFocusInside) node.firstChild.focus({ preventScroll: true });
  }
}

function stripEntry(inspection) {
  const caption = element("span", { className: "cap", "data-verdict": inspection.verdict }, shape(inspection.verdict), WORDS[inspection.verdict], element("time", { text: clockOf(inspection.decided_at) }));
  const button = element("button", { "aria-label": `${WORDS[inspection.verdict]}, ${clockOf(inspection.decided_at)}, ${inspection.code}`, title: `${inspection.code} ${inspection.source}` });
  const thumbnail = artifact(inspection, "thumbnail");
  if (thumbnail) button.append(element("img", { src: artifactUrl(thumbnail), alt: "", loading: "lazy", decoding: "async" }));
  button.append(caption);
  button.addEventListener("click", () => pick(inspection.inspection_id));
  return element("li", { "data-id": inspection.inspection_id }, button);
}

// ---- status --------------------------------------------------------------------------------------------------------

function drawStatus() {
  const status = state.status;
  const stalled = status.stations.filter((station) => station.state === "stalled").map((station) => station.name);
  const noticed = status.stations.filter((station) => station.notice);
  if (stalled.length) lamp("lamp-link", "bad", `Stalled: ${stalled.join(", ")}`, "no progress; systemd restarts the daemon if this goes on");
  else if (noticed.length) lamp("lamp-link", "wait", `Notice: ${noticed[0].name}`, noticed.map((station) => `${station.name}: ${station.notice}`).join("\n"));
  else lamp("lamp-link", "good", "Live");
  $("site").textContent = status.site;
  drawStations();
  drawUplink(status.uplink);
  drawProviders(status.providers);
  drawCounters(status);
  drawClockSkew(Date.parse(status.now) - status.heard);
  drawAge();
}

function lamp(id, kind, text, title) {
  $(id).dataset.state = kind;
  $(id).replaceChildren(element("i"), text);
  $(id).title = title || "";
}

function drawUplink(uplink) {
  const lag = uplink.lag_s >= 60 ? `, ${span(uplink.lag_s)} behind` : "";
  if (uplink.state === "connected") lamp("lamp-uplink", lag ? "wait" : "good", `Uplink${lag}`, uplink.text);
  else if (uplink.state === "retrying") lamp("lamp-uplink", "wait", `Uplink waits${lag}`, uplink.text);
  else lamp("lamp-uplink", "off", "No uplink", uplink.text);
}

function drawProviders(providers) {
  const fallen = providers.filter((run) => run.is_fallback || (run.required && run.required !== run.provider));
  const names = [...new Set(providers.map((run) => run.provider.toUpperCase()))].join(", ");
  const down = providers.filter((run) => run.fault);
  if (down.length) lamp("lamp-providers", "bad", `Down: ${down[0].model}`, down[0].fault);
  else if (fallen.length) lamp("lamp-providers", "bad", `Fallback: ${fallen[0].model} on ${fallen[0].provider.toUpperCase()}`, "see Models");
  else if (names) lamp("lamp-providers", "good", names, "where the models run");
  else $("lamp-providers").replaceChildren();
  $("models").replaceChildren(...providers.map((run) => {
    const isBad = fallen.includes(run) || Boolean(run.fault);
    const where = run.provider.toUpperCase() + (run.required && run.required !== run.provider ? `, ${run.required.toUpperCase()} required` : fallen.includes(run) ? ", fallback" : "") + (run.fault ? ", being opened again" : "");
    return element("li", { className: isBad ? "bad" : "", title: run.fault || "" }, element("span", { text: run.model }), element("span", { text: where }));
  }));
  if (!providers.length) $("models").replaceChildren(element("li", { text: "none" }));
}

function drawCounters({ counters, frames_per_second, uptime_s, version }) {
  const figure = (name, value, title) => element("div", { title }, element("dt", { text: name }), element("dd", { text: count(value) }));
  const sign = (text) => element("span", { className: "op", text, "aria-hidden": "true" });
  const check = (isGood) => element("span", { className: isGood ? "check" : "check bad", text: isGood ? "✓ balanced" : "✗ does not balance" });
  const why = Object.entries(counters.refused_by_reason).map(([reason, n]) => `${reason}: ${n}`).join("\n");
  $("balance-capture").replaceChildren(
    figure("captured", counters.captured), sign("="), figure("decided", counters.decided), sign("+"),
    figure("refused", counters.refused, why || "none"), sign("+"), figure("in flight", counters.in_flight),
    check(counters.is_capture_balanced));
  $("balance-ledger").replaceChildren(
    figure("committed", counters.committed, "inspections, reviews, feedback: all that is delivered one by one"), sign("="),
    figure("delivered", counters.delivered), sign("+"), figure("pending", counters.pending),
    ...(counters.quarantined ? [sign("+"), figure("set aside", counters.quarantined, "by a repair: loupe outbox status")] : []),
    check(counters.is_ledger_balanced));
  const dropped = counters.dropped ? ` · ${count(counters.dropped)} dropped` : "";
  $("rate").replaceChildren(`${fixed(frames_per_second, 1)} frames/s${dropped}`, element("span", { className: "more", text: ` · up ${span(uptime_s)} · ${version}` }));
}

function drawClockSkew(skewMs) {
  const isFar = Math.abs(skewMs) > CLOCK_SKEW_MS_MAX;
  $("banner-clock").hidden = !isFar;
  if (isFar) $("banner-clock").textContent = `This screen's clock is ${span(Math.abs(skewMs) / 1000)} ${skewMs > 0 ? "behind" : "ahead of"} the device's; times shown are the device's.`;
}

// ---- news from the device ------------------------------------------------------------------------------------------

function take(inspection) {
  if (state.inspections.some((i) => i.inspection_id === inspection.inspection_id)) return;
  state.inspections.unshift(inspection);
  const excess = state.inspections.length - RECENT_MAX;
  if (excess > 0) {
    // What the operator looks at stays until they leave it.
    const kept = state.inspections.slice(0, RECENT_MAX);
    const picked = state.inspections.slice(RECENT_MAX).find((i) => i.inspection_id === state.pickedId);
    state.inspections = picked ? [...kept, picked] : kept;
  }
}

let spokenAt = 0;
function speak(inspection) {
  if (Date.now() - spokenAt < SPEAK_INTERVAL_MS) return;
  spokenAt = Date.now();
  const why = inspection.reasons.map((code) => (inspection.advice || {})[code] || code).join("; ");
  $("spoken").textContent = `${WORDS[inspection.verdict]}, ${inspection.station}. ${why}`;
}

async function reload() {
  const answer = await fetch(`/api/v1/inspections?limit=${RECENT_MAX}`, { cache: "no-store" });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const { inspections } = await answer.json();
  const arrived = state.inspections.filter((i) => !inspections.some((j) => j.inspection_id === i.inspection_id));
  // UUIDv7 sorts by time: what arrived while the list was on its way comes first.
  const newest = inspections.length ? inspections[0].inspection_id : "";
  state.inspections = [...arrived.filter((i) => i.inspection_id > newest || i.inspection_id === state.pickedId), ...inspections].sort((a, b) => (a.inspection_id < b.inspection_id ? 1 : -1));
  invalidate();
}

let source = null;
let retryTimer = 0;

function connect() {
  clearTimeout(retryTimer);
  if (source) source.close();
  source = new EventSource("/api/v1/events");
  state.lastHeard = Date.now();
  source.addEventListener("open", () => {
    heard();
    reload().catch(lost);
  });
  source.addEventListener("inspection", (event) => {
    heard();
    const inspection = JSON.parse(event.data);
    take(inspection);
    speak(inspection);
    invalidate();
  });
  source.addEventListener("status", (event) => {
    heard();
    state.status = { ...JSON.parse(event.data), heard: Date.now() };
    drawStatus();
  });
  source.addEventListener("reload", () => reload().catch(lost));
  source.addEventListener("error", lost);
}

function heard() {
  state.lastHeard = Date.now();
  if (state.isConnected) return;
  state.isConnected = true;
  state.retries = 0;
  lamp("lamp-link", "good", "Live");
  $("banner-link").hidden = true;
  document.body.classList.remove("stale");
}

// The browser's own retry gives up on some errors, so the page retries itself.
function lost() {
  if (source) source.close();
  source = null;
  state.isConnected = false;
  document.body.classList.add("stale");
  lamp("lamp-link", "bad", "Connection lost");
  $("banner-link").textContent = "Connection to the device lost. What you see is old. Trying again…";
  $("banner-link").hidden = false;
  clearTimeout(retryTimer);
  retryTimer = setTimeout(connect, RETRY_MS[Math.min(state.retries, RETRY_MS.length - 1)]);
  state.retries += 1;
}

// ---- the operator --------------------------------------------------------------------------------------------------

function goLive() {
  state.pickedId = null;
  state.pickedItem = null;
  invalidate();
}

function pick(id) {
  const newest = live();
  state.pickedId = newest && newest.inspection_id === id ? null : id;
  state.pickedItem = null;
  invalidate();
}

// While somebody fills a form in, the line goes on and the inspection that it is about stays.
function stay() {
  if (state.pickedId || !shown()) return;
  state.pickedId = shown().inspection_id;
  invalidate();
}

function step(by) {
  const list = ofStation();
  const current = shown();
  const at = list.findIndex((i) => current && i.inspection_id === current.inspection_id);
  const next = list[Math.max(0, Math.min(list.length - 1, at + by))];
  if (!next) return;
  pick(next.inspection_id);
  requestAnimationFrame(() => document.querySelector('#strip [aria-current="true"]')?.scrollIntoView({ inline: "nearest", block: "nearest" }));
}

function show(mode) {
  state.mode = mode;
  drawPicture(shown());
}

function toggleBoxes() {
  state.boxes = !state.boxes;
  drawPicture(shown());
}

const KEYS = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  Home: goLive,
  Escape: goLive,
  l: goLive,
  p: () => show("picture"),
  h: () => show(state.mode === "heatmap" ? "picture" : "heatmap"),
  c: () => show(state.mode === "comparison" ? "picture" : "comparison"),
  b: toggleBoxes,
};

document.addEventListener("keydown", (event) => {
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select")) return;
  event.preventDefault();
  action();
});
$("live").addEventListener("click", goLive);
$("show-picture").addEventListener("click", () => show("picture"));
$("show-heatmap").addEventListener("click", () => show("heatmap"));
$("show-comparison").addEventListener("click", () => show("comparison"));
$("show-boxes").addEventListener("click", toggleBoxes);
$("picture").addEventListener("error", () => {
  $("picture").hidden = true;
  $("boxes").replaceChildren();
  $("stage-empty").hidden = false;
  $("stage-empty").textContent = "The picture of this inspection is no longer kept.";
});
new ResizeObserver(() => drawPicture(shown())).observe($("stage"));
setInterval(() => {
  $("clock").textContent = clockOf(state.status ? Date.parse(state.status.now) + Date.now() - state.status.heard : Date.now());
  drawAge();
  if (state.isConnected && Date.now() - state.lastHeard > SILENCE_MS_MAX) lost();
}, 1000);
window.addEventListener("pagehide", () => source && source.close());
window.addEventListener("pageshow", (event) => event.persisted && connect());
connect();
