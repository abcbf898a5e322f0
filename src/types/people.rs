//! People of a site, as far as the ledger must know who signed what. They are names, not accounts: there are no logins.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Timestamp;
use crate::limits::REVIEW_WORD_CHARS_MAX;

/// Shortest name that a person signs with, characters.
const USERNAME_CHARS_MIN: usize = 3;

/// What a person is at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Admin,
    Manager,
    Operator,
    Viewer,
}

impl Role {
    const ALL: [Self; 4] = [Self::Admin, Self::Manager, Self::Operator, Self::Viewer];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Manager => "manager",
            Role::Operator => "operator",
            Role::Viewer => "viewer",
        }
    }

    /// The role called `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

/// A person as the last version says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    pub operator_id: Uuid,
    /// 1 for the first.
    pub version: u32,
    /// What the person signs with; unique at the device without regard to case.
    pub username: String,
    pub full_name: Option<String>,
    pub role: Role,
    /// `false`: retired.
    pub is_active: bool,
    pub changed_at: Timestamp,
    pub changed_by: String,
}

/// A change of the register of people; also the body of `POST /api/v1/people`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum PersonOrder {
    /// Register somebody, or bring back somebody who had retired.
    Add { username: String, full_name: Option<String>, role: Role, by: String },
    /// Give another name to sign with, or another full name; what is `None` stays.
    Rename { username: String, new_username: Option<String>, full_name: Option<String>, by: String },
    /// May sign nothing from now on.
    Retire { username: String, by: String },
}

impl PersonOrder {
    /// What is wrong with the words themselves, for whoever gave them.
    ///
    /// # Errors
    /// The fault in a sentence.
    pub fn check(&self) -> Result<(), String> {
        let optional = |field, text: &Option<String>| {
            text.as_deref().map_or(Ok(()), |text| check_words(field, text, REVIEW_WORD_CHARS_MAX))
        };
        match self {
            Self::Add { username, full_name, by, .. } => {
                check_username(username)?;
                optional("full_name", full_name)?;
                check_words("by", by, REVIEW_WORD_CHARS_MAX)
            }
            Self::Rename { username, new_username, full_name, by } => {
                check_words("username", username, REVIEW_WORD_CHARS_MAX)?;
                new_username.as_deref().map_or(Ok(()), check_username)?;
                optional("full_name", full_name)?;
                check_words("by", by, REVIEW_WORD_CHARS_MAX)
            }
            Self::Retire { username, by } => {
                check_words("username", username, REVIEW_WORD_CHARS_MAX)?;
                check_words("by", by, REVIEW_WORD_CHARS_MAX)
            }
        }
    }
}

/// A name without regard to case.
#[must_use]
pub fn username_key(username: &str) -> String {
    username.trim().to_lowercase()
}

fn check_username(username: &str) -> Result<(), String> {
    check_words("username", username, REVIEW_WORD_CHARS_MAX)?;
    if username.trim().chars().count() < USERNAME_CHARS_MIN {
        return Err(format!("`username` is shorter than {USERNAME_CHARS_MIN} characters"));
    }
    Ok(())
}

/// One line of plain text that says something.
pub(super) fn check_words(field: &str, text: &str, chars_max: usize) -> Result<(), String> {
    match text.trim() {
        "" => Err(format!("`{field}` is empty")),
        text if text.chars().count() > chars_max => Err(format!("`{field}` is longer than {chars_max} characters")),
        text if text.chars().any(char::is_control) => Err(format!("`{field}` is not plain text")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{PersonOrder, Role, username_key};

    fn add(username: &str, full_name: Option<&str>, by: &str) -> Result<(), String> {
        let (username, by) = (username.to_owned(), by.to_owned());
        PersonOrder::Add { username, full_name: full_name.map(str::to_owned), role: Role::Operator, by }.check()
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

    #[test]
    fn names_are_the_same_in_either_case() {
        assert_eq!(username_key(" JOSÉ "), username_key("josé"));
        assert_ne!(username_key("kim"), username_key("kin"));
        assert_eq!(Role::parse("manager"), Some(Role::Manager));
        assert_eq!(Role::parse("worker"), None);
    }
}
