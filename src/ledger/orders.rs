//! What is wrong with the words of an order about people or feedback, before the ledger is asked.
//!
//! Pure, so that a command can say it before it hands a long order to the daemon; the writer checks again.

use crate::limits::{ACTION_TAKEN_CHARS_MAX, REVIEW_REASON_CHARS_MAX, REVIEW_WORD_CHARS_MAX};
use crate::types::{FeedbackOrder, FeedbackType, PersonOrder};

/// Shortest name that a person signs with, characters.
const USERNAME_CHARS_MIN: usize = 3;

/// What is wrong with the words themselves, for whoever gave them.
///
/// # Errors
/// The fault in a sentence.
pub fn check_person_order(order: &PersonOrder) -> Result<(), String> {
    let optional = |field, text: &Option<String>| {
        text.as_deref().map_or(Ok(()), |text| check_words(field, text, REVIEW_WORD_CHARS_MAX))
    };
    match order {
        PersonOrder::Add { username, full_name, by, .. } => {
            check_username(username)?;
            optional("full_name", full_name)?;
            check_words("by", by, REVIEW_WORD_CHARS_MAX)
        }
        PersonOrder::Rename { username, new_username, full_name, by } => {
            check_words("username", username, REVIEW_WORD_CHARS_MAX)?;
            new_username.as_deref().map_or(Ok(()), check_username)?;
            optional("full_name", full_name)?;
            check_words("by", by, REVIEW_WORD_CHARS_MAX)
        }
        PersonOrder::Retire { username, by } => {
            check_words("username", username, REVIEW_WORD_CHARS_MAX)?;
            check_words("by", by, REVIEW_WORD_CHARS_MAX)
        }
    }
}

/// What is wrong with the words themselves, for whoever gave them.
///
/// # Errors
/// The fault in a sentence.
pub fn check_feedback_order(order: &FeedbackOrder) -> Result<(), String> {
    let (FeedbackOrder::Say { notes, by, .. } | FeedbackOrder::Act { notes, by, .. }) = order;
    check_words("by", by, REVIEW_WORD_CHARS_MAX)?;
    notes.as_deref().map_or(Ok(()), |notes| check_words("notes", notes, REVIEW_REASON_CHARS_MAX))?;
    match order {
        FeedbackOrder::Act { action_taken, .. } => check_words("action_taken", action_taken, ACTION_TAKEN_CHARS_MAX),
        FeedbackOrder::Say { subject, feedback_type, rating, expected_severity, .. } => {
            let kind = feedback_type.as_str();
            for (field, value) in [("rating", rating), ("expected_severity", expected_severity)] {
                if value.is_some_and(|value| !(1..=5).contains(&value)) {
                    return Err(format!("`{field}` is not between 1 and 5"));
                }
            }
            if subject.is_none() && !feedback_type.is_opinion() {
                return Err(format!("`{kind}` is said of an inspection or item; name its code"));
            }
            if feedback_type.is_opinion() && rating.is_none() && notes.is_none() {
                return Err(format!("`{kind}` without a rating and without notes says nothing"));
            }
            let is_about_a_defect = matches!(feedback_type, FeedbackType::MissedDefect | FeedbackType::SeverityWrong);
            if expected_severity.is_some() && !is_about_a_defect {
                return Err(format!("an expected severity goes with missed_defect or severity_wrong, not with {kind}"));
            }
            Ok(())
        }
    }
}

fn check_username(username: &str) -> Result<(), String> {
    check_words("username", username, REVIEW_WORD_CHARS_MAX)?;
    if username.trim().chars().count() < USERNAME_CHARS_MIN {
        return Err(format!("`username` is shorter than {USERNAME_CHARS_MIN} characters"));
    }
    Ok(())
}

/// One line of plain text that says something.
fn check_words(field: &str, text: &str, chars_max: usize) -> Result<(), String> {
    match text.trim() {
        "" => Err(format!("`{field}` is empty")),
        text if text.chars().count() > chars_max => Err(format!("`{field}` is longer than {chars_max} characters")),
        text if text.chars().any(char::is_control) => Err(format!("`{field}` is not plain text")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{check_feedback_order, check_person_order};
    use crate::types::{ActionResult, FeedbackOrder, FeedbackType, PersonOrder, Role};

    fn add(username: &str, full_name: Option<&str>, by: &str) -> Result<(), String> {
        let (username, by) = (username.to_owned(), by.to_owned());
        check_person_order(&PersonOrder::Add {
            username,
            full_name: full_name.map(str::to_owned),
            role: Role::Operator,
            by,
        })
    }

    #[test]
    fn names_that_are_short_empty_long_or_binary_are_refused() {
        assert!(add("kim", None, "lee").is_ok());
        assert!(add("김민준", Some("김 민준"), "lee").is_ok());
        for bad in ["", "  ", "ab", " a b ".trim_end_matches(" b "), "a\u{7}bc", "nul\0byte", &"x".repeat(101)] {
            assert!(add(bad, None, "lee").is_err(), "{bad:?}");
        }
        assert!(add("kim", Some(""), "lee").is_err());
        assert!(add("kim", Some(&"x".repeat(101)), "lee").is_err());
        assert!(add("kim", None, "").is_err());
    }

    fn say(kind: FeedbackType, subject: Option<&str>, rating: Option<u8>, severity: Option<u8>) -> Result<(), String> {
        let subject = subject.map(str::to_owned);
        let (feedback_type, expected_severity, by) = (kind, severity, "kim".to_owned());
        check_feedback_order(&FeedbackOrder::Say { subject, feedback_type, rating, expected_severity, notes: None, by })
    }

    #[test]
    fn ratings_and_severities_outside_one_to_five_are_refused() {
        let of = Some("INS-20261121-0001");
        for good in [None, Some(1), Some(5)] {
            assert!(say(FeedbackType::SeverityWrong, of, good, good).is_ok(), "{good:?}");
        }
        for bad in [Some(0), Some(6), Some(255)] {
            assert!(say(FeedbackType::Accurate, of, bad, None).is_err(), "{bad:?}");
            assert!(say(FeedbackType::SeverityWrong, of, None, bad).is_err(), "{bad:?}");
        }
        assert!(say(FeedbackType::Accurate, of, None, Some(3)).is_err());
    }

    #[test]
    fn only_an_opinion_is_about_the_site_and_an_opinion_says_something() {
        assert!(say(FeedbackType::Satisfaction, None, Some(4), None).is_ok());
        assert!(say(FeedbackType::Satisfaction, None, None, None).is_err());
        assert!(say(FeedbackType::FalsePositive, None, Some(4), None).is_err());
    }

    #[test]
    fn long_and_binary_words_are_refused() {
        let act = |action: &str, notes: &str| {
            check_feedback_order(&FeedbackOrder::Act {
                inspection: "INS-20261121-0001".to_owned(),
                action_taken: action.to_owned(),
                action_result: ActionResult::Resolved,
                notes: Some(notes.to_owned()),
                by: "kim".to_owned(),
            })
        };
        assert!(act("cleaned the lens", "a smear").is_ok());
        assert!(act("", "a smear").is_err());
        assert!(act(&"x".repeat(201), "a smear").is_err());
        assert!(act("cleaned", &"x".repeat(100_000)).unwrap_err().contains("1000 characters"));
        assert!(act("cleaned", "a\0b").is_err());
    }
}
