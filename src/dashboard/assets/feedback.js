// Feedback: what somebody thinks of the inspection that is shown, what was done about it, and what was said last.
"use strict";

const FEEDBACK_SHOWN_MAX = 8;
const feedback = { inspectionId: null, isOffered: false };
const FEEDBACK_WORDS = { accurate: "right", false_positive: "false alarm", missed_defect: "missed defect", severity_wrong: "wrong severity", detection_accuracy: "detection", satisfaction: "satisfaction" };

function sayFeedback(text, isFault) {
  $("feedback-said").textContent = text;
  $("feedback-said").className = isFault ? "fail-text" : "pass-text";
}

// Called with each drawing; the form changes only when another inspection is shown.
function drawFeedbackForm(inspection) {
  $("feedback-section").hidden = !feedback.isOffered;
  if (feedback.inspectionId === inspection.inspection_id) return;
  feedback.inspectionId = inspection.inspection_id;
  $("feedback-notes").value = "";
  sayFeedback("");
}

async function sendFeedback(event) {
  event.preventDefault();
  const kind = $("feedback-kind").value;
  const by = $("feedback-author").value;
  const notes = $("feedback-notes").value.trim() || null;
  const order = kind === "action"
    ? { do: "act", inspection: feedback.inspectionId, action_taken: $("feedback-taken").value.trim(), action_result: $("feedback-result").value, notes, by }
    : { do: "say", subject: feedback.inspectionId, feedback_type: kind, rating: null, expected_severity: null, notes, by };
  $("feedback-send").disabled = true;
  sayFeedback("…");
  try {
    await ask("/api/v1/feedback", order);
    sayFeedback("Stored.");
    await drawFeedback();
  } catch (error) {
    sayFeedback(error.message, true);
  }
  $("feedback-send").disabled = false;
}

function feedbackRow(entry) {
  const subject = entry.code ? (entry.ordinal === null ? entry.code : `${entry.code}/${entry.ordinal}`) : "the site";
  const rating = entry.rating === null ? "" : ` ${entry.rating}/5`;
  const words = element("td", { text: `${FEEDBACK_WORDS[entry.feedback_type]}${rating}` }, element("small", { text: `${entry.author}${entry.notes ? `: ${entry.notes}` : ""}` }));
  return element("tr", {}, element("td", { text: subject }, element("small", { text: clockOf(entry.occurred_at) })), words, element("td", { text: entry.is_open ? "open" : "" }));
}

async function drawFeedback() {
  const [said, { people }] = await Promise.all(["feedback", "people"].map((what) => ask(`/api/v1/${what}`)));
  feedback.isOffered = true;
  $("feedbacks-section").hidden = said.feedback.length === 0;
  $("feedbacks").replaceChildren(...said.feedback.slice(0, FEEDBACK_SHOWN_MAX).map(feedbackRow));
  $("people").replaceChildren(...people.map((person) => element("option", { value: person.username })));
  invalidate();
}

$("feedback-form").addEventListener("submit", sendFeedback);
$("feedback-form").addEventListener("focusin", stay);
$("feedback-kind").addEventListener("change", () => {
  const isAction = $("feedback-kind").value === "action";
  $("feedback-taken").hidden = !isAction;
  $("feedback-taken").required = isAction;
  $("feedback-result").hidden = !isAction;
});
// A dashboard that takes none answers 404, one that others can reach 403: then nothing is offered.
drawFeedback().catch(() => {});
setInterval(() => feedback.isOffered && document.visibilityState === "visible" && drawFeedback().catch(() => {}), 15000);
