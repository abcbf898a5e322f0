// The kit page: what is counted, from the ledger, after each inspection. Text is put in as text, never as markup.
"use strict";

const SILENCE_MS_MAX = 5000;
const $ = (id) => document.getElementById(id);
let names = {};
let lastHeard = Date.now();
let isAsking = false;
let isStale = false;

function element(tag, { text, className, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function shape(name) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  node.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#shape-${name}`);
  node.append(use);
  return node;
}

const line = (count, name, note) => element("li", {}, element("b", { text: count }), element("span", { text: name }, ...(note ? [element("small", { text: note })] : [])));
const called = (part) => (names[part] ? `${part} ${names[part]}` : part);
const colour = (id) => (id === null || id === undefined ? "" : ` · colour ${id}`);

function column(title, total, rows, whenEmpty) {
  const list = element("ul", {}, ...(rows.length ? rows : [element("li", { className: "ok", text: whenEmpty })]));
  return element("section", {}, element("h3", { text: title }, element("span", { text: total })), list);
}

function drawSession(session) {
  if (session.is_restricted) return element("article", { className: "kit is-over" }, element("header", {}, shape("none"), element("span", {}, element("b", { text: "A restricted kit" }), element("small", { text: "shown on the device only" }))));
  const count = session.count;
  const isOpen = session.ended_at === null;
  const verdict = count.is_complete ? "pass" : count.doubtful ? "hold" : "none";
  const word = count.is_complete ? "Complete" : count.doubtful ? "In doubt" : isOpen ? "Counting" : "Incomplete";
  const where = [session.kit_code, session.station, isOpen ? `since ${new Date(session.started_at).toLocaleTimeString("en-GB")}` : session.outcome].filter(Boolean).join(" · ");
  const header = element("header", { "data-verdict": isOpen || verdict !== "none" ? verdict : "none" }, shape(verdict),
    element("span", {}, element("b", { text: `${word}: ${session.kit_name}` }), element("small", { text: where })),
    element("span", { className: "figures", text: `${count.found} / ${count.expected}` }, element("small", { text: "found" })));
  const bar = element("div", { className: "bar-done", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": count.expected, "aria-valuenow": count.found, "aria-label": "found" }, element("span"));
  bar.firstChild.style.width = `${count.expected ? (100 * count.found) / count.expected : 0}%`;
  const missing = count.lines.filter((l) => l.missing > 0).map((l) => line(`${l.missing} ×`, l.parts.map(called).join(" or "), `${l.found} of ${l.quantity} found${colour(l.color_id)}`));
  const surplus = count.surplus_items.map((s) => line(`${s.count} ×`, called(s.part_number), s.is_in_kit ? `more than the kit asks for${colour(s.color)}` : "not in this kit"));
  const doubtful = count.doubts.map((d) => line("?", d.looks_like ? `looks like ${called(d.looks_like)}` : "the picture", `${d.inspection}${d.ordinal === null ? "" : `/${d.ordinal}`} · ${d.reasons.join(", ")}`));
  const columns = element("div", { className: "columns" }, column("Missing", count.missing, missing, "nothing"), column("Surplus", count.surplus, surplus, "nothing"), column("Doubtful", count.doubtful, doubtful, "nothing"));
  const trays = element("div", { className: "trays" }, element("span", { text: `${count.trays} ${count.trays === 1 ? "tray" : "trays"}, ${count.spares} spares` }), element("span", { text: session.trays.slice(-6).map((t) => t.code).join("  ") }));
  if (isOpen && session.trays.length) {
    const undo = element("button", { text: "Take back the last tray" });
    undo.addEventListener("click", () => removeLast(session.id, undo));
    trays.append(undo);
  }
  return element("article", { className: isOpen ? "kit" : "kit is-over", "data-session": session.id }, header, bar, ...(isOpen ? [columns, trays] : []));
}

async function removeLast(session, button) {
  button.disabled = true;
  const body = JSON.stringify({ do: "remove_tray", session, inspection: null, by: "dashboard", reason: null });
  const answer = await fetch("/api/v1/kits", { method: "POST", headers: { "Content-Type": "application/json" }, body }).catch(() => null);
  if (!answer || !answer.ok) {
    const told = answer ? await answer.json().catch(() => null) : null;
    $("banner-link").textContent = told ? told.error.message : "The device did not answer.";
    $("banner-link").hidden = false;
  }
  ask();
}

function draw(overview) {
  names = overview.part_names;
  const open = overview.sessions.filter((s) => s.is_restricted || s.ended_at === null);
  const over = overview.sessions.filter((s) => !s.is_restricted && s.ended_at !== null);
  $("sessions").replaceChildren(...[...open, ...over].map(drawSession));
  $("none").hidden = overview.sessions.length > 0;
  $("low").hidden = overview.low_stock.length === 0;
  $("low-list").replaceChildren(...overview.low_stock.map((l) => line(l.quantity, called(l.part_number), `at least ${l.min_quantity} wanted`)));
  const first = open.find((s) => !s.is_restricted);
  document.title = first ? `${first.count.is_complete ? "Complete" : `${first.count.found}/${first.count.expected}`} · Kits · Loupe` : "Kits · Loupe";
}

// One question at a time; what changes meanwhile is asked for after the answer.
async function ask() {
  if (isAsking) { isStale = true; return; }
  isAsking = true;
  try {
    const answer = await fetch("/api/v1/kits");
    if (answer.ok) draw(await answer.json());
  } catch { /* the lamp says it */ }
  isAsking = false;
  if (isStale) { isStale = false; ask(); }
}

function lamp(state, text) {
  $("lamp-link").dataset.state = state;
  $("lamp-link").replaceChildren(element("i"), text);
}

let ticks = 0;
const source = new EventSource("/api/v1/events");
source.addEventListener("open", () => { $("banner-link").hidden = true; lamp("good", "Live"); ask(); });
source.addEventListener("inspection", () => { lastHeard = Date.now(); ask(); });
source.addEventListener("reload", ask);
// Orders from the command line change a count without an inspection.
source.addEventListener("status", () => { lastHeard = Date.now(); if (++ticks % 2 === 0) ask(); });
setInterval(() => {
  if (Date.now() - lastHeard <= SILENCE_MS_MAX) return;
  lamp("bad", "No connection");
  $("banner-link").textContent = "No connection to the device: this may be out of date.";
  $("banner-link").hidden = false;
}, 1000);
ask();
