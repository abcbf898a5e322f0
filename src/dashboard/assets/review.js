// Reviews: a form for the inspection that is shown, what was said last, and what is counted from it.
"use strict";

const REVIEWS_SHOWN_MAX = 8;
const COUNTS_SHOWN_MAX = 6;
const review = { inspectionId: null, isOffered: false };

async function ask(path, body) {
  const options = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) } : { cache: "no-store" };
  const answer = await fetch(path, options);
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error ? value.error.message : `status ${answer.status}`);
  return value;
}

function say(text, isFault) {
  $("review-said").textContent = text;
  $("review-said").className = isFault ? "fail-text" : "pass-text";
}

// Called with each drawing; the form changes only when another inspection is shown.
function drawReviewForm(inspection) {
  const items = inspection.items.filter((item) => item.matched);
  $("review-section").hidden = !review.isOffered || items.length === 0;
  if (review.inspectionId === inspection.inspection_id) return;
  review.inspectionId = inspection.inspection_id;
  const doubtful = items.find((item) => item.verdict !== "pass") || items[0];
  $("review-item").replaceChildren(...items.map((item) => {
    const option = element("option", { value: item.ordinal, text: `${item.ordinal}: ${nameOf(item)}` });
    option.selected = item === doubtful;
    return option;
  }));
  $("review-part").value = "";
  say("");
}

function partsOf(inspection) {
  const candidates = inspection.items.flatMap((item) => (item.matched ? item.matched.top_k : []));
  return [...new Set(candidates.map((candidate) => candidate.part_id))];
}

async function sendReview(event) {
  event.preventDefault();
  const kind = $("review-kind").value;
  const action = kind === "part" ? { kind, part_id: $("review-part").value.trim() } : { kind };
  const order = { subject: `${review.inspectionId}/${$("review-item").value}`, action, reviewer: $("review-author").value, reason: $("review-reason").value };
  $("review-send").disabled = true;
  say("…");
  try {
    const stored = await ask("/api/v1/reviews", order);
    say(stored.template ? "Stored and learned." : "Stored.");
    await drawReviews();
  } catch (error) {
    say(error.message, true);
  }
  $("review-send").disabled = false;
}

async function undoReview(id) {
  try {
    await ask(`/api/v1/reviews/${id}/undo`, { reviewer: $("review-author").value || "dashboard" });
    say("Taken back.");
    await drawReviews();
  } catch (error) {
    say(error.message, true);
  }
}

function reviewRow(entry) {
  const said = entry.status === "confirmed" ? "right" : entry.status === "pending" ? "taken back" : entry.corrected_part_id || "unknown";
  const subject = entry.ordinal === null ? entry.code : `${entry.code}/${entry.ordinal}`;
  const last = element("td");
  if (entry.is_last && entry.status !== "pending") {
    const button = element("button", { type: "button", text: "Undo" });
    button.addEventListener("click", () => undoReview(entry.id));
    last.append(button);
  }
  const words = element("td", { text: `${entry.shown_part_id || "–"} → ${said}` }, element("small", { text: `${entry.reviewer}${entry.reason ? `: ${entry.reason}` : ""}` }));
  return element("tr", {}, element("td", { text: subject }, element("small", { text: clockOf(entry.occurred_at) })), words, last);
}

function countRow(cells) {
  return element("tr", {}, ...cells.map((text, at) => element("td", { text, className: at === cells.length - 1 ? "n" : "" })));
}

async function drawReviews() {
  const [{ reviews }, { confusions }, { unknowns }] = await Promise.all(["reviews", "confusions", "unknowns"].map((what) => ask(`/api/v1/${what}`)));
  review.isOffered = true;
  $("reviews-section").hidden = reviews.length === 0;
  $("reviews").replaceChildren(...reviews.slice(0, REVIEWS_SHOWN_MAX).map(reviewRow));
  $("confusions-section").hidden = confusions.length === 0;
  $("confusions").replaceChildren(...confusions.slice(0, COUNTS_SHOWN_MAX).map((pair) => countRow([`${pair.shown_part_id} is really ${pair.true_part_id}`, `${count(pair.count)}×`])));
  $("unknowns-section").hidden = unknowns.length === 0;
  $("unknowns").replaceChildren(...unknowns.slice(0, COUNTS_SHOWN_MAX).map((part) => countRow([`like ${part.best_part_id}, ${part.example_code}`, fixed(part.nearest_similarity, 3), `${count(part.detected_count)}×`])));
  invalidate();
}

$("review-form").addEventListener("submit", sendReview);
// While someone fills the form in, the line goes on and this inspection stays.
$("review-form").addEventListener("focusin", () => {
  stay();
  $("review-parts").replaceChildren(...(shown() ? partsOf(shown()) : []).map((part) => element("option", { value: part })));
});
$("review-kind").addEventListener("change", () => {
  $("review-part").hidden = $("review-kind").value !== "part";
  $("review-part").required = $("review-kind").value === "part";
});
// A dashboard without reviews answers 404: then none are offered.
drawReviews().catch(() => {});
setInterval(() => review.isOffered && document.visibilityState === "visible" && drawReviews().catch(() => {}), 15000);
