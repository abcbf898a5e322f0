//! Lines and tables for people.

use std::fmt;
use std::io::IsTerminal as _;

use crate::types::{Inspection, Verdict};

/// One inspection on one line: verdict, code, source, what was seen and why.
#[derive(Debug, Clone, Copy)]
pub struct InspectionLine<'a>(pub &'a Inspection);

/// Longest source shown; the end of a path tells more than its start.
const SOURCE_CHARS_MAX: usize = 44;

impl fmt::Display for InspectionLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inspection = self.0;
        write!(
            f,
            "{} {:17} {:44}",
            paint(inspection.verdict),
            inspection.code,
            tail(&inspection.source, SOURCE_CHARS_MAX)
        )?;
        if let Some(anomaly) = &inspection.anomaly {
            write!(f, " anomaly {:.3}/{:.2}", anomaly.score, anomaly.threshold)?;
        } else {
            let named: Vec<&str> = inspection.items.iter().filter_map(|item| item.part_id.as_deref()).collect();
            let count = inspection.items.len();
            write!(f, " {count} {}", if count == 1 { "item" } else { "items" })?;
            if !named.is_empty() {
                write!(f, " [{}]", named.join(" "))?;
            }
        }
        write!(f, " {:.0} ms", inspection.timings_ms.total)?;
        if !inspection.reasons.is_empty() {
            let reasons: Vec<&str> = inspection.reasons.iter().map(|reason| reason.code()).collect();
            write!(f, " ({})", reasons.join(", "))?;
        }
        Ok(())
    }
}

/// The closing line of a run.
#[must_use]
pub fn tally(by_verdict: &[(Verdict, u64)], refused: u64) -> String {
    let decided: u64 = by_verdict.iter().map(|(_, count)| count).sum();
    let parts: Vec<String> = by_verdict.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
    let mut text = format!("{decided} inspected: {}", parts.join(", "));
    if refused > 0 {
        text.push_str(&format!("; {refused} frames with nothing to inspect"));
    }
    text
}

/// The verdict in capitals, four wide, coloured on a terminal.
fn paint(verdict: Verdict) -> String {
    let (text, color) = match verdict {
        Verdict::Pass => ("PASS", "32"),
        Verdict::Hold => ("HOLD", "33"),
        Verdict::Fail => ("FAIL", "31"),
    };
    let is_colored = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if is_colored { format!("\x1b[1;{color}m{text}\x1b[0m") } else { text.to_owned() }
}

fn tail(text: &str, chars_max: usize) -> String {
    let count = text.chars().count();
    if count <= chars_max {
        return text.to_owned();
    }
    let kept: String = text.chars().skip(count - chars_max + 1).collect();
    format!("…{kept}")
}

#[cfg(test)]
mod tests {
    use super::{tail, tally};
    use crate::types::Verdict;

    #[test]
    fn long_sources_keep_their_end() {
        assert_eq!(tail("short.jpg", 44), "short.jpg");
        assert_eq!(tail("/a/very/long/path.jpg", 10), "…/path.jpg");
        assert_eq!(tail("가나다라마바사", 3), "…바사");
    }

    #[test]
    fn the_tally_counts_what_was_not_inspected() {
        assert_eq!(
            tally(&[(Verdict::Pass, 2), (Verdict::Fail, 0)], 3),
            "2 inspected: 2 pass, 0 fail; 3 frames with nothing to inspect"
        );
    }
}
